"""Settings of `conf/hydra/launcher/slurm.yaml`."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from compresskv.checking import AfterValidator, Ge, Gt, Le, LineText
from compresskv.errors import UserError, readable

Count = Annotated[int, Ge(1), Le(1_000_000)]


def _option(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise UserError(
            None, "give its long name without leading dashes", why=f"{readable(name)} is not an option of sbatch"
        )
    return name


def _as_written(folder: str) -> str:
    if "%" in folder or "\\" in folder:
        raise UserError(None, "choose another folder", why="SLURM interprets % and backslashes in names of logs")
    return folder


Option = Annotated[str, AfterValidator(_option)]


@dataclass(frozen=True)
class SlurmConfig:
    """Settings of the SLURM launcher; None: the cluster's default.

    `time`: minutes. `groups_per_task`: number of groups of one model that an array task runs, loading the model once.
    `setup`: shell lines that run before each array task. `sbatch`: further options of sbatch by long name.

    `requeues`: how often a task that runs out of time is queued again. `notice`: a task is requeued this number of
    seconds before its time limit. `poll`: seconds between checks of the queue.

    Every value in the job's script is a single line, so that it cannot add lines to the script.
    """

    partition: LineText | None
    account: LineText | None
    qos: LineText | None
    gres: LineText | None
    time: Count
    memory: LineText | None
    cpus: Count
    parallel: Count
    groups_per_task: Count
    setup: tuple[LineText, ...]
    sbatch: Mapping[Option, bool | int | float | LineText]
    requeues: Annotated[int, Ge(0), Le(1_000_000)]
    notice: Count
    poll: Annotated[float, Gt(0), Le(86_400)]
    detach: bool
    folder: Annotated[LineText, AfterValidator(_as_written)]

    def submitit(self, root: Path) -> dict:
        """Return these settings by the names of submitit's executor. `root`: where the harness is imported from."""
        given = {"partition": self.partition, "account": self.account, "qos": self.qos, "gres": self.gres}
        given |= {"mem": self.memory}
        path = f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}"
        return {
            **{name: value for name, value in given.items() if value is not None},
            "job_name": "compresskv",
            "time": self.time,
            "cpus_per_task": self.cpus,
            "array_parallelism": self.parallel,
            "setup": [path, *self.setup],
            "signal_delay_s": self.notice,
            "stderr_to_stdout": True,
            # srun no longer takes --cpus-per-task from the batch job.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "additional_parameters": {"requeue": True, **self.sbatch},
        }
