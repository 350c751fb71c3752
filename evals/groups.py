"""From the jobs of a sweep to its groups: which belong together, and the overrides that run exactly those."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.job import Job

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Jobs that run together, and the overrides of the multiruns that they consist of: nearly always one."""

    model: str
    eval: str
    task: str
    jobs: tuple[Job, ...]
    sweeps: tuple[Overrides, ...]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.model, self.eval, self.task)))


def groups(jobs: Sequence[Job], overrides: Sequence[Sequence[str]]) -> list[Group]:
    """One group for each model, evaluation and task. `overrides` are those that each job was composed from.

    Jobs of the same names stay together whatever else sets them apart: they may share a folder, which only one process
    can hold.
    """
    found: dict[tuple[str, str, str], dict[Overrides, Job]] = {}
    for job, given in zip(jobs, overrides, strict=True):
        for task in _tasks(job):
            its = tuple(given)
            if task:
                its = (*(o for o in given if o.lstrip("+").split("=")[0] != "eval.tasks"), f"eval.tasks=[{task}]")
            found.setdefault((job.model.name, job.eval.name, task), {}).setdefault(its, job)
    return [Group(*key, tuple(members.values()), _sweeps(list(members))) for key, members in found.items()]


def _tasks(job: Job) -> list[str]:
    """The names of an evaluation's tasks; one without a name for an evaluation that is a single task."""
    if "tasks" not in {field.name for field in dataclasses.fields(job.eval)}:
        return [""]
    from evals.longbench.tasks import select_tasks

    return [task.name for task in select_tasks(job.eval.tasks)]


def _sweeps(overrides: Sequence[Overrides]) -> tuple[Overrides, ...]:
    """Multirun overrides that expand to exactly these jobs: one list if they are a full grid, else one a job."""
    keys = [override.split("=", 1)[0] for override in overrides[0]]
    if any([override.split("=", 1)[0] for override in job] != keys for job in overrides):
        return tuple(overrides)
    axes: list[Mapping[str, None]] = [dict.fromkeys(column) for column in zip(*overrides, strict=True)]
    if set(itertools.product(*axes)) != set(overrides):
        return tuple(overrides)
    return (tuple(_sweep(key, list(axis)) for key, axis in zip(keys, axes, strict=True)),)


def _sweep(key: str, axis: Sequence[str]) -> str:
    return axis[0] if len(axis) == 1 else f"{key}={','.join(override.split('=', 1)[1] for override in axis)}"
