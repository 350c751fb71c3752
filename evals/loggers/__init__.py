"""Loggers: they send results on to a service; the local files stay the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.results.measurement import Measurement
    from evals.results.record import Record


@dataclass(frozen=True)
class Logger(ABC):
    """A frozen dataclass of its settings, named by `_target_` in `conf/logger/<name>.yaml`."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` before a run for what would fail after it, such as a missing login."""

    @abstractmethod
    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        """Send on finished `records`, and the figures of the run."""

    @abstractmethod
    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Send on what evaluations without samples wrote, such as times or a calibration."""
