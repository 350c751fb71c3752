"""Show progress with an estimate of the remaining time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from evals.console import check_interrupts

T = TypeVar("T")


class Progress:
    """Progress bars on a terminal; in other output, such as a SLURM log, a line every 30 seconds.

    `report` is called after each item with the title, the number of finished items and their total number.
    """

    def __init__(self, console: Console | None = None, report: Callable[[str, int, int], None] | None = None):
        self.console = console or Console(stderr=True)
        self.report = report

    def say(self, text: str) -> None:
        """Print one line of plain text."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    @contextmanager
    def track(self, title: str, items: Sequence[T], unit: str = "prompts") -> Iterator[Iterator[T]]:
        """Iterate over `items`, whose plural noun is `unit`, and show the number of finished items and the time
        left."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, disable=not self.console.is_terminal) as bars:
            bars.add_task(title, total=len(items))
            yield self._steps(bars, title, items, unit)

    def _steps(self, bars: Bars, title: str, items: Sequence[T], unit: str) -> Iterator[T]:
        shown, state = 0.0, bars.tasks[0]
        for number, item in enumerate(items, 1):
            check_interrupts()
            yield item
            bars.advance(state.id)
            if self.report:
                self.report(title, number, len(items))
            elapsed = state.elapsed or 0.0
            if not self.console.is_terminal and (elapsed - shown > 30 or number == len(items)):
                shown = elapsed
                left = elapsed / number * (len(items) - number)
                self.say(f"{title}: {number}/{len(items)} {unit}, {elapsed:.0f} s, about {left:.0f} s left")
