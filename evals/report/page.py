"""Everything that an experiment shows, before it is rendered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.results.published import Published
from evals.tables.compare import Verdict
from evals.tables.table import Table, Texts
from evals.tables.text import NO_INTERVAL, PARTIAL


@dataclass(frozen=True)
class Page:
    """The tables of each model, their comparisons, and published numbers that have none of ours beside them.

    `notes`: sentences that a reader of the numbers needs. `frames` make what is written as CSV, `figures` draw what is
    written as images, by the name of the file. `family` says for what the p-values of `verdicts` are corrected.
    """

    name: str
    title: str
    tables: Sequence[Table]
    verdicts: Sequence[Verdict] = ()
    others: Sequence[Published] = ()
    notes: Sequence[str] = ()
    texts: Sequence[Texts] = ()
    frames: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    family: str = ""

    @property
    def sentences(self) -> list[str]:
        """All that is below the tables."""
        cells = [cell for table in self.tables for cell in table.cells]
        general = {
            PARTIAL: any(cell.partial for cell in cells),
            NO_INTERVAL: any(cell.interval is None for cell in cells),
        }
        return [*(note for note, holds in general.items() if holds), *self.notes]
