"""Everything that an item shows, and how its numbers read in any format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.report.cells import Cell, Grid
from evals.report.verdicts import Verdict
from evals.results.published import Published

if TYPE_CHECKING:
    from pandas import DataFrame

EVALS = {"niah": "needle in a haystack", "longbench": "LongBench", "head_masking": "head masking"}

PARTIAL = "† partial: averaged over so many of the samples; marked and never ranked with others of more samples."


@dataclass(frozen=True)
class Plain:
    """A table of texts."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """Everything of an item: a grid for each model, comparisons, and published numbers that stand beside none of ours.

    `notes`: sentences that a reader of the numbers needs. `plain` are tables of other things than means, `frames` what
    is written as CSV by its file's name, `figures` draw what is written as images by theirs.
    """

    name: str
    title: str
    grids: Sequence[Grid]
    verdicts: Sequence[Verdict]
    others: Sequence[Published]
    notes: Sequence[str] = ()
    plain: Sequence[Plain] = ()
    frames: Mapping[str, Callable[[], DataFrame]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


def heading(grid: Grid) -> str:
    title = f": {grid.metric.title}" if grid.metric.title else ""
    return f"{grid.model}, {EVALS.get(grid.eval, grid.eval)}{title}"


def samples(grid: Grid) -> dict[str, int]:
    """How many samples the cells of each column have that have most."""
    return {
        column: max((row.cells[column].n for row in grid.rows if column in row.cells), default=0)
        for column in grid.columns
    }


def notes(page: Page) -> list[str]:
    """The sentences below the tables."""
    cells: list[Cell] = []
    for grid in page.grids:
        for row in grid.rows:
            cells += row.cells.values()
    partly = any(cell.partial for cell in cells)
    return [*([PARTIAL] if partly else []), *page.notes]


def budget_text(budget: int | None) -> str:
    return "full" if budget is None else str(budget)


def mean_text(cell: Cell) -> str:
    return f"{cell.mean:.{cell.digits}f}"


def bounds(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval with a digit less than its mean."""
    return "" if interval is None else f"[{interval[0]:.{digits - 1}f}, {interval[1]:.{digits - 1}f}]"


def partial(cell: Cell) -> str:
    return f"†{cell.counted} of {cell.of}" if cell.partial else ""


def paper(cell: Cell) -> str:
    """The published number, and the difference or why there is none."""
    if cell.published is None:
        return ""
    if cell.difference is None:
        return f"(paper {cell.published:.2f}, not comparable: {cell.apart})"
    return f"(paper {cell.published:.2f}, {cell.difference:+.2f})"


VERDICT_COLUMNS = (
    "model",
    "budget",
    "comparison",
    "of",
    "difference",
    "95 % interval",
    "p (Holm)",
    "n",
    "verdict",
    "n needed",
)


def verdict_texts(verdict: Verdict) -> list[str]:
    return [
        verdict.model,
        budget_text(verdict.budget),
        f"{verdict.second} − {verdict.first}",
        verdict.column if verdict.metric == "score" else f"{verdict.metric}, {verdict.column}",
        f"{verdict.mean:+.{verdict.digits}f}",
        bounds(verdict.interval, verdict.digits) or "–",
        f"{verdict.p:.3f}",
        str(verdict.n),
        verdict.words,
        "–" if verdict.needed is None else str(verdict.needed),
    ]


def published_column(row: Published) -> str:
    return row.task_or_metric if row.unit == "score" else f"{row.task_or_metric} ({row.unit})"
