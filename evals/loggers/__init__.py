"""Loggers: they send results on to a service; the local files stay the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.job import Job
    from evals.results.measurement import Measurement
    from evals.results.record import Record


Report = Callable[[str, int, int], None]
"""Takes what is being run, such as a task, and how many of its prompts are done, of how many."""


@dataclass(frozen=True)
class Logger(ABC):
    """A frozen dataclass of its settings, named by `_target_` in `conf/logger/<name>.yaml`."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` before a run for what would fail after it, such as a missing login."""

    @abstractmethod
    def watched(self, jobs: Sequence[Job]) -> AbstractContextManager[Report]:
        """While `jobs` run: a function that sends how far they are. It never ends a run."""

    @abstractmethod
    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        """Send on finished `records`, and the figures of the run."""

    @abstractmethod
    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Send on what evaluations without samples wrote, such as times or a calibration."""
