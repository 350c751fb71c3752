"""The content that a report shows for an experiment, before rendering."""

from collections.abc import Sequence
from dataclasses import dataclass

from evals.results.published import Published
from evals.tables.compare import Verdict
from evals.tables.table import Shown
from evals.tables.text import NO_INTERVAL, PARTIAL


@dataclass(frozen=True, kw_only=True)
class Page(Shown):
    """The content that a report shows for an experiment, with the comparisons of its tables.

    `others`: published numbers that are not in any table. `family`: the set of comparisons for which the p-values are
    corrected.
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
