"""Submit the groups of a sweep with sbatch."""

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from evals.files import new_folder
from evals.launch.groups import Group
from evals.launch.slurm.config import SlurmConfig


@dataclass(frozen=True)
class Submitted:
    """A submitted group: the id and log of its array task, and the file for the outcome of its settings."""

    group: Group
    id: str
    log: Path
    outcome: Path

    @property
    def reported(self) -> bool:
        return self.outcome.exists()

    @property
    def entries(self) -> Sequence[Mapping[str, Any]] | None:
        """The entries of the settings; None if the group ended without an outcome."""
        return json.loads(self.outcome.read_text(encoding="utf-8")) if self.reported else None


def require_slurm() -> None:
    """Raise `UserError` if submitit or SLURM is missing."""
    if not find_spec("submitit"):
        raise UserError("hydra/launcher", "run `pip install '.[slurm]'`", value="slurm", why="submitit is missing")
    if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(name)]:
        raise UserError(
            "hydra/launcher",
            "run it on a node of the cluster",
            value="slurm",
            why=f"{missing[0]} is not on the PATH",
        )


def submit(config: SlurmConfig, groups: Sequence[Group]) -> list[Submitted]:
    """Submit one array task per bundle of groups and return the groups. Raises `UserError` if SLURM refuses."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from evals.launch.slurm.array_task import ArrayTask

    folder = new_folder(Path(config.folder).absolute())
    executor = SlurmExecutor(folder, max_num_timeout=config.requeues)
    executor.update_parameters(**config.submitit(Path(__file__).resolve().parents[3]))
    outcomes = [folder / f"outcome-{number}.json" for number in range(len(groups))]
    bundled = bundles(groups, config.groups_per_task)

    def task_of(bundle: Sequence[int]) -> ArrayTask:
        return ArrayTask([(groups[number].configs, outcomes[number]) for number in bundle])

    try:
        # The exception already includes the stderr of sbatch.
        with _outside_of_jobs(), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(task_of(bundle)) for bundle in bundled]
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        raise UserError(
            "hydra/launcher",
            "correct the settings that sbatch names",
            value="slurm",
            why=f"sbatch refused the jobs ({_complaint(str(error))})",
        ) from error
    task = {number: job for bundle, job in zip(bundled, jobs, strict=True) for number in bundle}
    parts = ((groups[number], task[number], outcomes[number]) for number in range(len(groups)))
    return [Submitted(group, job.job_id, job.paths.stdout, outcome) for group, job, outcome in parts]


def bundles(groups: Sequence[Group], size: int) -> list[list[int]]:
    """Split the groups, by their numbers, into bundles of at most `size` groups of the same model."""
    by_model: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        by_model.setdefault(group.model, []).append(number)
    bundled = []
    for numbers in by_model.values():
        bundled += [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return bundled


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the driver's own SLURM job, if any: sbatch and srun would apply the settings of this job to the new jobs."""
    from submitit.helpers import clean_env

    cluster = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(cluster)
        yield


def _complaint(text: str) -> str:
    """Extract the messages of sbatch from an error of submitit."""
    complaints = re.findall(r"^sbatch: error: (.*)$", text, flags=re.MULTILINE)
    return "; ".join(complaints) or " ".join(text.split())
