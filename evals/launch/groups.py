"""From the jobs of a sweep to its groups: which belong together, and the overrides that run exactly those."""

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
    unit: str
    jobs: tuple[Job, ...]
    sweeps: tuple[Overrides, ...]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.model, self.eval, self.unit)))


def groups(jobs: Sequence[Job], overrides: Sequence[Sequence[str]]) -> list[Group]:
    """One group per model, evaluation and unit of it. `overrides` are those that each job was composed from.

    Jobs of the same names stay together whatever else sets them apart: they may share a folder, which only one process
    can hold.
    """
    by_place: dict[tuple[str, str, str], dict[Overrides, Job]] = {}
    for job, given in zip(jobs, overrides, strict=True):
        for unit, only in job.eval.units().items():
            alone = tuple(given) if only is None else _replaced(given, only)
            by_place.setdefault((job.model.name, job.eval.name, unit), {}).setdefault(alone, job)
    return [Group(*place, tuple(members.values()), _sweeps(list(members))) for place, members in by_place.items()]


def _replaced(overrides: Sequence[str], override: str) -> Overrides:
    """The overrides with this one instead of any of the same setting."""
    setting = override.split("=", 1)[0]
    return (*(other for other in overrides if other.lstrip("+").split("=")[0] != setting), override)


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
