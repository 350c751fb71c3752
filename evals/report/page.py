"""Everything that an item shows, and how its numbers read in any format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.console import visible
from evals.kinds import TITLES
from evals.report.cells import Cell, Grid
from evals.report.labels import TASKS
from evals.report.verdicts import Verdict
from evals.results.published import SECOND_HAND, Published

if TYPE_CHECKING:
    from pandas import DataFrame

PARTIAL = "† partial: averaged over so many of the samples, and never ranked."
NO_INTERVAL = "A mean without an interval is over a single sample, or over tasks of which one has a single sample."


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
    is written as CSV by its file's name, `figures` draw what is written as images by theirs. `family` says for what the
    p-values of `verdicts` are corrected.
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
    family: str = ""


def heading(grid: Grid) -> str:
    title = f": {grid.metric.title}" if grid.metric.title else ""
    return f"{grid.model}, {TITLES.get(grid.eval, grid.eval)}{title}"


def figure_title(grid: Grid, above: str = "") -> str:
    """A figure's title: what it shows, over how many samples, and how it marks what is partial."""
    cells: list[Cell] = []
    for row in grid.rows:
        cells += row.cells.values()
    overall = [row.cells[grid.overall] for row in grid.rows if grid.overall in row.cells]
    numbers = sorted({cell.n for cell in overall})
    shown = [f"n = {'–'.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))}"] if numbers else []
    shown += ["with 95 % intervals"] if any(cell.interval for cell in overall) else []
    shown += ["† and hollow: partial"] if any(cell.partial for cell in cells) else []
    return f"{above or heading(grid)}\n{', '.join(shown)}"


def columns(grid: Grid) -> dict[str, tuple[str, str]]:
    """How each column is headed: its name as papers write it, and n of the cells that have most samples."""
    headed = {}
    for column in grid.columns:
        n = max((row.cells[column].n for row in grid.rows if column in row.cells), default=0)
        headed[column] = TASKS.get(column, column), f"(n = {n})"
    return headed


def notes(page: Page) -> list[str]:
    """The sentences below the tables."""
    cells: list[Cell] = []
    for grid in page.grids:
        for row in grid.rows:
            cells += row.cells.values()
    general = {
        PARTIAL: any(cell.partial for cell in cells),
        NO_INTERVAL: any(cell.interval is None for cell in cells),
    }
    return [*(note for note, holds in general.items() if holds), *page.notes]


def file_part(name: str) -> str:
    """`name`, as a tree's files have it, as part of a file's name: it leads nowhere else."""
    safe = "".join(character if character.isprintable() and character not in "/\\" else "-" for character in name)
    safe = safe.encode()[:200].decode(errors="ignore")
    return safe if safe == name else f"{safe}-{hashlib.sha256(visible(name).encode()).hexdigest()[:8]}"


def left_out(faults: Sequence[str]) -> list[str]:
    """A sentence on what of a tree's files is not shown, if anything is not."""
    if not faults:
        return []
    more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
    return [f"Left out, since their files are not as a run leaves them: {'; '.join(faults[:5])}{more}."]


def budget_text(budget: int | None) -> str:
    return "full" if budget is None else str(budget)


def mean_text(cell: Cell) -> str:
    return f"{cell.mean:.{cell.digits}f}"


def bounds(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval with a digit less than its mean."""
    return "" if interval is None else f"[{interval[0]:z.{digits - 1}f}, {interval[1]:z.{digits - 1}f}]"


def partial(cell: Cell) -> str:
    """How many of the samples there are, and of the tasks, where some are missing."""
    missing_tasks = f", {len(cell.strata)} of {cell.tasks} tasks" if len(cell.strata) < cell.tasks else ""
    return f"†{cell.counted} of {cell.of}{missing_tasks}" if cell.partial else ""


def paper(cell: Cell) -> str:
    """The published number, and the difference or why there is none; whether others say that it is the paper's."""
    if cell.published is None:
        return ""
    number = f"paper {cell.published:.2f}" + (f", {SECOND_HAND}" if cell.source == SECOND_HAND else "")
    if cell.difference is None:
        return f"({number}, not comparable: {cell.apart})"
    return f"({number}, {cell.difference:+z.2f})"


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
    difference, interval, p, n, needed = numbers(verdict)
    return [
        verdict.model,
        budget_text(verdict.budget),
        f"{verdict.second} − {verdict.first}",
        verdict.column if verdict.metric == "score" else f"{verdict.metric}, {verdict.column}",
        difference,
        interval,
        p,
        n,
        verdict.words,
        needed,
    ]


def numbers(verdict: Verdict) -> list[str]:
    """Of a comparison: the difference, its interval, p, the samples, and how many it would take to tell two apart."""
    return [
        f"{verdict.mean:+z.{verdict.digits}f}",
        bounds(verdict.interval, verdict.digits) or "–",
        probability(verdict.p),
        f"{'†' if verdict.partial else ''}{verdict.n}",
        "–" if verdict.needed is None else str(verdict.needed),
    ]


def probability(p: float) -> str:
    """A p-value; none is 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def published_column(row: Published) -> str:
    return row.task_or_metric if row.unit == "score" else f"{row.task_or_metric} ({row.unit})"
