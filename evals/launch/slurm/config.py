"""What `conf/hydra/launcher/slurm.yaml` says."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from compresskv.checking import Ge, Gt, Le, PathText

Count = Annotated[int, Ge(1), Le(1_000_000)]


@dataclass(frozen=True)
class SlurmConfig:
    """`groups_per_task`: groups of one model that an array task runs, loading it once. `time` in minutes; `setup`:
    shell lines before each array task; `sbatch`: any other options by long name.

    `requeues`: how often a task that ran out of time may go on. `notice`: seconds before the end of its time at which
    it is queued again. `poll`: seconds between two looks at the queue. None leaves a choice to the cluster.
    """

    partition: PathText | None
    account: PathText | None
    qos: PathText | None
    gres: PathText | None
    time: Count
    memory: PathText | None
    cpus: Count
    parallel: Count
    groups_per_task: Count
    setup: tuple[PathText, ...]
    sbatch: Mapping[str, bool | int | float | PathText]
    requeues: Annotated[int, Ge(0), Le(1_000_000)]
    notice: Count
    poll: Annotated[float, Gt(0), Le(86_400)]
    detach: bool
    folder: PathText

    def submitit(self, root: Path) -> dict:
        """These settings as submitit's executor names them. `root`: where the harness is to be imported from."""
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
