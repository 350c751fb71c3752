"""What runs a sweep: one interface over this process, the devices of this machine, and a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from evals.job import Job, job_from
from evals.launch.groups import Group, groups


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
        """Raises `UserError` for a configuration that cannot be."""
        return [job_from(config) for config in self.configs]

    @cached_property
    def groups(self) -> list[Group]:
        """The parts that can run apart."""
        return groups(self.jobs, self.overrides)


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
