"""Paired comparisons of the methods of a table, by the average over everything or by every column."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from evals.report.cells import Grid, Row
from evals.report.items import BETTER, Item
from evals.results import statistics
from evals.results.pairing import Key, common


@dataclass(frozen=True)
class Verdict:
    """`second` − `first` over the `n` samples that both have; `p` is corrected for its family (`family_of`).

    `metric` and `column` say of what; `lower`: whether lower values are better. `needed`: samples that would separate
    the two; None where the mean difference is 0. `partial`: whether either has a part of the samples alone.
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
    metric: str = "score"
    column: str = "average"
    digits: int = 2
    lower: bool = False
    finding: str = BETTER
    partial: bool = False

    @property
    def words(self) -> str:
        if self.p >= statistics.ALPHA:
            return "no difference shown"
        ordered = (self.first, self.second) if (self.mean > 0) != self.lower else (self.second, self.first)
        return self.finding.format(worse=ordered[0], better=ordered[1])


def verdicts(item: Item, grid: Grid) -> list[Verdict]:
    """All comparisons of a grid; none of what is no better or worse, such as tokens kept, nor of measured times.

    The rows of one budget, protocol and variant are compared on the samples that both have. Those of one protocol are a
    family (`family_of`).
    """
    if not item.tested:
        return []
    pairs = [(column, *pair) for column in grid.compared or [grid.overall] for pair in _pairs(item, grid, column)]
    families = Counter(first.protocol for _, first, _ in pairs)
    compared = [_compared(first, second, column, families[first.protocol]) for column, first, second in pairs]
    corrected = [0.0] * len(pairs)
    for protocol in families:
        places = [place for place, (_, first, _) in enumerate(pairs) if first.protocol == protocol]
        for place, p in zip(places, statistics.holm([compared[place].p for place in places]), strict=True):
            corrected[place] = p
    return [
        Verdict(
            grid.model,
            grid.eval,
            first.budget,
            first.label,
            second.label,
            round(difference.mean, grid.metric.digits),
            difference.interval,
            p,
            difference.n,
            difference.needed,
            grid.metric.field,
            column,
            grid.metric.digits,
            grid.metric.better == "lower",
            item.finding,
            first.cells[column].partial or second.cells[column].partial,
        )
        for (column, first, second), difference, p in zip(pairs, compared, corrected, strict=True)
    ]


def family_of(item: Item) -> str:
    """The sentence that says which comparisons are one family, whose p-values are corrected together."""
    compared = "of this table" if item.pairs else f"of {item.subject} with another method of the same budget"
    return (
        f"p: paired permutation test, Holm-corrected over one family: all comparisons {compared}, for one model, "
        "evaluation, protocol and metric."
    )


def _pairs(item: Item, grid: Grid, column: str) -> Iterator[tuple[Row, Row]]:
    """What is compared: rows of one budget, protocol and variant with samples of the column in common."""
    for rows in grid.budgets.values():
        for first in rows:
            for second in rows:
                alike = (first.protocol, first.variant) == (second.protocol, second.variant)
                wanted = first is not second and alike and _wanted(item, grid, first, second)
                if wanted and _common(first, second, column):
                    yield first, second


def _wanted(item: Item, grid: Grid, first: Row, second: Row) -> bool:
    if item.pairs:
        return (first.method, second.method) in item.pairs
    return first.method == subject_of(item, grid)


def subject_of(item: Item, grid: Grid) -> str:
    """What all methods of a grid are compared with: the item's subject; where it was not run, what comes first of the
    largest budget with several rows."""
    if any(row.method == item.subject for row in grid.rows if row.budget is not None):
        return item.subject
    return next((rows[0].method for rows in grid.budgets.values() if len(rows) > 1), item.subject)


def _common(first: Row, second: Row, column: str) -> bool:
    cells = first.cells.get(column), second.cells.get(column)
    return all(cells) and bool(cells[0].samples & cells[1].samples)  # type: ignore[union-attr]


def _compared(first: Row, second: Row, column: str, comparisons: int) -> statistics.Difference:
    strata = []
    one, other = first.cells[column].strata, second.cells[column].strata
    for task in one:
        shared, _ = common([one[task], other.get(task, {})])
        if shared:
            strata.append([other[task][sample] - one[task][sample] for sample in shared])
    return statistics.mean_difference(strata, comparisons)


def unpaired(grid: Grid) -> list[str]:
    """A sentence for every row with samples whose prompts or weights are not those of most rows under the same ids."""
    notes = []
    by_kind: dict[tuple[str, str], list[Row]] = {}
    for row in grid.rows:
        if grid.overall in row.cells:
            by_kind.setdefault((row.protocol, row.variant), []).append(row)
    for rows in by_kind.values():
        counted = Counter(chain.from_iterable(row.cells[grid.overall].samples for row in rows))
        usual: dict[tuple[str, str], Key] = {}
        for (task, sample), _ in counted.most_common():
            usual.setdefault((task, sample[0]), sample)
        for row in rows:
            samples = row.cells[grid.overall].samples
            others = sum(usual[task, sample[0]] != sample for task, sample in samples)
            if others:
                notes.append(
                    f"{grid.model}, {row.setting}: {others} of {len(samples)} samples have another prompt, or other "
                    "weights of the model, than those of most rows under the same ids: they are compared with none of "
                    "these."
                )
    return notes
