"""What runs a sweep: one interface over this process, the devices of this machine, and a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from evals.compose import jobs_from
from evals.job import Job
from evals.launch.groups import Group, groups
from evals.results.names import IMMATERIAL, differences


@dataclass(frozen=True)
class Sweep:
    """The composed `configs` of a sweep, and the `overrides` that each was composed from.

    `command` is the ordinary command line, up to what tells one part of the sweep from another; `outcome` is the file
    that gets what became of every setting, as JSON.
    """

    configs: Sequence[dict[str, Any]]
    overrides: Sequence[Sequence[str]]
    command: Sequence[str]
    outcome: Path | None = None

    @cached_property
    def jobs(self) -> list[Job]:
        """Raises what `jobs_from` raises."""
        return told_apart(jobs_from(self.configs))

    @cached_property
    def groups(self) -> list[Group]:
        """The parts that can run apart."""
        return groups(self.jobs, self.overrides)


def told_apart(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with what tells those of a model and evaluation apart that are called the same, such as `window=16`."""
    alike: dict[tuple[str, str, str], dict[Job, list[int]]] = {}
    for place, job in enumerate(jobs):
        # The full cache is one setting at every budget.
        members = alike.setdefault((job.model.name, job.eval.name, job.label), {})
        members.setdefault(replace(job, config={}), []).append(place)
    named = list(jobs)
    for members in alike.values():
        if len(members) == 1:
            continue
        configs = [_setting_of(jobs[places[0]]) for places in members.values()]
        for suffix, places in zip(differences(configs), members.values(), strict=True):
            for place in places:
                named[place] = replace(jobs[place], apart=suffix)
    return named


def _setting_of(job: Job) -> dict[str, Any]:
    """The part of a job's configuration that tells settings apart."""
    left_out = IMMATERIAL if job.budget is not None else (*IMMATERIAL, "budget")
    return {name: value for name, value in job.config.items() if name not in left_out}


class Executor(Protocol):
    def run(self, sweep: Sweep) -> None:
        """Run all of `sweep` and report it. Raises `UserError`, in the end for what failed."""
        ...


class InProcess:
    """Runs the whole sweep in this process."""

    def run(self, sweep: Sweep) -> None:
        from evals.running.sweep import run

        run(sweep.jobs, sweep.outcome)


class Plan:
    """Says what the sweep will take on this device, and runs nothing."""

    def run(self, sweep: Sweep) -> None:
        from evals.running.plan import plan

        plan(sweep.jobs)
