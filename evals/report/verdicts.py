"""Paired comparisons of the methods of a table, by the average over everything."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from evals.report.cells import Grid, Row
from evals.report.items import Item
from evals.results import statistics


@dataclass(frozen=True)
class Verdict:
    """`second` − `first` over the `n` samples that both have, corrected over all comparisons of the grid (Holm).

    `needed`: samples that would separate the two; None where the mean difference is 0.
    """

    model: str
    eval: str
    budget: int | None
    first: str
    second: str
    mean: float
    interval: tuple[float, float] | None
    p: float
    n: int
    needed: int | None

    @property
    def words(self) -> str:
        if self.p >= statistics.ALPHA:
            return "no difference shown"
        return f"{self.second if self.mean > 0 else self.first} is better"


def verdicts(item: Item, grid: Grid) -> list[Verdict]:
    """All comparisons of an item; none of tokens kept, which are no scores."""
    if item.columns != "scores":
        return []
    pairs = list(_pairs(item, grid))
    compared = [_compared(first, second, grid.last, len(pairs)) for first, second in pairs]
    corrected = statistics.holm([difference.p for difference in compared])
    return [
        Verdict(
            grid.model,
            grid.eval,
            first.budget,
            first.label,
            second.label,
            round(difference.mean, 2),
            difference.interval,
            p,
            difference.n,
            difference.needed,
        )
        for (first, second), difference, p in zip(pairs, compared, corrected, strict=True)
    ]


def _pairs(item: Item, grid: Grid) -> Iterator[tuple[Row, Row]]:
    """What is compared: rows of one budget, protocol and variant with samples in common."""
    for rows in grid.budgets.values():
        for first in rows:
            for second in rows:
                alike = (first.protocol, first.variant) == (second.protocol, second.variant)
                if (
                    first is not second
                    and alike
                    and _wanted(item, rows, first, second)
                    and _common(first, second, grid)
                ):
                    yield first, second


def _wanted(item: Item, rows: list[Row], first: Row, second: Row) -> bool:
    if item.pairs:
        return (first.method, second.method) in item.pairs
    methods = [row.method for row in rows]
    # Where the item's subject was not run, everything is compared with what comes first.
    return first.method == (item.subject if item.subject in methods else methods[0])


def _common(first: Row, second: Row, grid: Grid) -> bool:
    cells = first.cells.get(grid.last), second.cells.get(grid.last)
    return all(cells) and bool(cells[0].samples & cells[1].samples)  # type: ignore[union-attr]


def _compared(first: Row, second: Row, column: str, comparisons: int) -> statistics.Difference:
    """Differences are weighted so that every task counts the same, however many samples it has."""
    strata = []
    one, other = first.cells[column].strata, second.cells[column].strata
    for task in one:
        common = [id for id in one[task] if id in other.get(task, {})]
        if common:
            strata.append([other[task][id] - one[task][id] for id in common])
    n = sum(map(len, strata))
    weighted: list[float] = []
    for differences in strata:
        weighted += [value * n / (len(strata) * len(differences)) for value in differences]
    result = statistics.difference([0.0] * n, weighted, comparisons)
    mean = fmean(fmean(differences) for differences in strata)
    return statistics.Difference(mean, statistics.interval(*strata), result.p, n, result.needed)
