"""Hand the groups of a sweep to sbatch."""

import io
import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from compresskv.errors import UserError
from evals.results.store import refused
from evals.slurm.config import SlurmConfig
from evals.slurm.plan import Group


@dataclass(frozen=True)
class Submitted:
    """A group in the queue: where it logs to, and the files that its command lines write when they end."""

    group: Group
    id: str
    log: Path
    outcomes: tuple[Path, ...]

    @property
    def reported(self) -> bool:
        return all(path.exists() for path in self.outcomes)


def require_slurm() -> None:
    """Raise `UserError` where there is no submitit or no SLURM."""
    if not find_spec("submitit"):
        raise UserError("hydra/launcher=slurm needs submitit: run `pip install '.[slurm]'`")
    if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(name)]:
        raise UserError(f"hydra/launcher=slurm: there is no {missing[0]} on the PATH: run it on a node of the cluster")


def submit(config: SlurmConfig, command: Sequence[str], found: Sequence[Group]) -> list[Submitted]:
    """One array task a group. Raises `UserError` where SLURM refuses."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from evals.slurm.task import ArrayTask

    folder = _new_folder(Path(config.folder).absolute())
    executor = SlurmExecutor(folder, max_num_timeout=config.requeues)
    executor.update_parameters(**config.submitit(Path(__file__).resolve().parents[2]))
    outcomes, payloads = [], []
    for number, group in enumerate(found):
        paths = [folder / f"outcome-{number}-{i}.json" for i in range(len(group.sweeps))]
        lines = [
            [*command, f"hydra.launcher.outcome={_quoted(path)}", *sweep]
            for path, sweep in zip(paths, group.sweeps, strict=True)
        ]
        outcomes.append(tuple(paths))
        payloads.append(ArrayTask(lines))
    try:
        # What sbatch writes to stderr is in the exception, too.
        with _outside_of_jobs(), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(payload) for payload in payloads]
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        raise UserError(f"sbatch refused the jobs: {_complaint(str(error))}") from error
    return [
        Submitted(group, job.job_id, job.paths.stdout, paths)
        for group, job, paths in zip(found, jobs, outcomes, strict=True)
    ]


def _new_folder(parent: Path) -> Path:
    """A folder of this submission's own, named by the time."""
    for attempt in itertools.count():
        folder = parent / (time.strftime("%Y%m%d-%H%M%S") + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(f"hydra.launcher.folder={parent}: this is no folder") from None
        except OSError as error:
            raise refused(parent, error) from error
    raise AssertionError


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hides the job that the driver itself may run in: sbatch and srun would take its settings for the new jobs'."""
    from submitit.helpers import clean_env

    cluster = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(cluster)
        yield


def _quoted(path: Path) -> str:
    """A path as Hydra's grammar takes it, whatever characters it has."""
    if re.fullmatch(r"[\w/.:-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _complaint(text: str) -> str:
    """sbatch's own words in what submitit says of it."""
    found = re.findall(r"^sbatch: error: (.*)$", text, flags=re.MULTILINE)
    return "; ".join(found) or " ".join(text.split())
