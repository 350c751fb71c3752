"""The content that a report shows for an experiment, before rendering."""

from collections.abc import Sequence
from dataclasses import dataclass

from evals.results.published import Published
from evals.tables.compare import Verdict
from evals.tables.table import Shown
from evals.tables.text import NO_INTERVAL, PARTIAL


@dataclass(frozen=True, kw_only=True)
class Page(Shown):
    """A report of an experiment. `others`: published numbers that are in no table.

    `family`: the comparisons for which p-values are corrected together.
    """

    name: str
    title: str
    verdicts: Sequence[Verdict] = ()
    others: Sequence[Published] = ()
    family: str = ""

    @property
    def sentences(self) -> list[str]:
        """The notes below the tables."""
        cells = [cell for table in self.tables for cell in table.cells]
        general = {
            PARTIAL: any(cell.partial for cell in cells),
            NO_INTERVAL: any(cell.interval is None for cell in cells),
        }
        return [*(note for note, holds in general.items() if holds), *self.notes]
