"""Create the jobs of a sweep from its configurations, and group them. Each group runs in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.compose import jobs_from, plug_in
from evals.job import Evaluation, Job
from evals.results.names import IMMATERIAL, differences


@dataclass(frozen=True)
class Group:
    """The jobs of one model, evaluation and unit (for example a task)."""

    model: str
    eval: str
    unit: str
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.model, self.eval, self.unit)))

    @property
    def configs(self) -> list[Mapping[str, Any]]:
        """The configurations of the jobs, from which another process creates the same jobs."""
        return [job.config for job in self.jobs]


def sweep_jobs(configs: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Return the jobs of a sweep with unique names. Raises the same errors as `jobs_from`."""
    return told_apart(jobs_from(configs))


def told_apart(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs. Jobs with the same name get a suffix that says how they differ, such as `window=16`."""
    alike: dict[tuple[str, str, str], dict[Job, list[int]]] = {}
    for place, job in enumerate(jobs):
        # The full cache is the same setting at every budget.
        members = alike.setdefault((job.model.name, job.eval.name, job.label), {})
        members.setdefault(replace(job, config={}), []).append(place)
    named = list(jobs)
    for members in alike.values():
        suffixes = [""]
        if len(members) > 1:
            suffixes = differences([_setting_of(jobs[places[0]]) for places in members.values()])
        for suffix, places in zip(suffixes, members.values(), strict=True):
            for place in places:
                named[place] = replace(jobs[place], apart=suffix)
    return named


def _setting_of(job: Job) -> dict[str, Any]:
    """Return the part of a job's configuration that distinguishes settings."""
    left_out = IMMATERIAL if job.budget is not None else (*IMMATERIAL, "budget")
    return {name: value for name, value in job.config.items() if name not in left_out}


def groups(jobs: Sequence[Job]) -> list[Group]:
    """Return one group per model, evaluation and unit, whose jobs may share folders that only one process can lock."""
    by_place: dict[tuple[str, str, str], dict[Job, None]] = {}
    for job in jobs:
        for unit, settings in job.eval.units().items():
            by_place.setdefault((job.model.name, job.eval.name, unit), {})[_only(job, settings)] = None
    return [Group(*place, tuple(told_apart(list(members)))) for place, members in by_place.items()]


def _only(job: Job, settings: Mapping[str, Any]) -> Job:
    """Return the job with these settings of its evaluation."""
    if not settings:
        return job
    node = {**job.config["eval"], **settings}
    return replace(job, eval=plug_in("eval", Evaluation, node), config={**job.config, "eval": node})
