"""Find the smallest safe budget of each method: `python -m evals results certify`.

A budget is certified if the one-sided test of `evals.tables.equivalence` shows, with the stated confidence, that its
mean loss against the full cache (paired by sample) is below a limit. The budgets of a method are tried from the largest
down, each at the full level, until one fails. With this fixed-sequence testing, the probability of certifying a budget
whose loss is not below the limit is at most the error rate of one test, for any losses (W. Maurer, L. Hothorn and W.
Lehmacher, Biometrie in der chemisch-pharmazeutischen Industrie 6, 1995; for settings of a model, A. Angelopoulos et
al., "Learn then Test", arXiv 2110.01052). Losses fall as the budget grows, so this order is suitable. Unlike with
Holm's correction, testing further small budgets does not make any certificate harder to get.

The confidence holds for each method separately. It is nominal: for skewed losses such as KL, one test is wrong more
often than 1 − confidence. With 42 samples of a lognormal KL (σ = 1.5), it is wrong in 14 % of all draws at 95 %
(docs/results.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compresskv.budget import Budget, largest_first
from evals.tables.compare import differences
from evals.tables.equivalence import below, samples_below, upper_bound
from evals.tables.methods import Name
from evals.tables.statistics import effective, weighted_values
from evals.tables.table import Metric, Row, Table, full_of


@dataclass(frozen=True)
class Tried:
    """A budget: its mean loss over `n` samples, and the upper `bound` of the loss at the nominal confidence.

    `safe`: whether the budget is certified. `needed`: number of samples that would certify it with this mean and
    spread; None if no number would, and for a single sample, which has no spread. `partial`: whether only a part of the
    samples was used.
    """

    budget: Budget
    loss: float
    bound: float
    n: int
    safe: bool
    needed: int | None
    partial: bool


@dataclass(frozen=True)
class Certificate:
    """The budgets of a method that were tested, from the largest to the first unsafe one: all tokens, or all shares."""

    model: str
    eval: str
    protocol: str
    method: str
    tried: Sequence[Tried]

    @property
    def smallest(self) -> Tried | None:
        """The smallest safe budget."""
        return next((each for each in reversed(self.tried) if each.safe), None)

    @property
    def failed(self) -> Tried | None:
        """The unsafe budget, if one was tested."""
        return next((each for each in self.tried if not each.safe), None)


def measured(table: Table) -> list[tuple[Row, Row | None]]:
    """Return every compressed row, with the full cache that shares samples with it, or None if no full cache does."""
    rows = [row for row in table.rows if table.overall in row.cells]
    fulls = [row for row in rows if row.budget is None]
    samples = {id(row): row.cells[table.overall].samples for row in rows}
    return [
        (row, full_of(row, [full for full in fulls if samples[id(full)] & samples[id(row)]]))
        for row in rows
        if row.budget is not None
    ]


def unmeasured(table: Table) -> list[str]:
    """Return a sentence with the settings that no certificate covers; empty if certificates cover all settings."""
    skipped = ", ".join(str(row.name) for row, full in measured(table) if full is None)
    left_out = f"{table.model}, {table.eval}: left out, since they share no samples with the full cache: {skipped}."
    return [left_out] if skipped else []


def certificates(
    table: Table, loss: float, confidence: float, method_of: Callable[[Row], str] = lambda row: row.label
) -> Iterator[Certificate]:
    """Return a certificate for every method of a table that shares samples with the full cache.

    `loss`: limit of the mean loss (lost score or added KL), in the metric's unit. `method_of`: returns the name of a
    row's method. Rows may share a name only if they differ in nothing but the budget.
    """
    # A share of the tokens is neither larger nor smaller than a number of tokens, so each kind has its own certificate.
    methods: dict[tuple[str, str, Name, type], list[tuple[Row, Row]]] = {}
    for row, full in measured(table):
        if full is not None:
            methods.setdefault((row.protocol, method_of(row), full.name, type(row.budget)), []).append((row, full))
    for (protocol, method, *_), pairs in methods.items():
        tried: list[Tried] = []
        for row, full in sorted(pairs, key=lambda pair: largest_first(pair[0].budget)):
            tried.append(_tried(row, full, table.overall, table.metric, loss, 1 - confidence))
            if not tried[-1].safe:
                break
        yield Certificate(table.model, table.eval, protocol, method, tried)


def _tried(row: Row, full: Row, column: str, metric: Metric, loss: float, alpha: float) -> Tried:
    mine, whole = row.cells[column], full.cells[column]
    lower = metric.better == "lower"
    strata = differences(whole.strata, mine.strata) if lower else differences(mine.strata, whole.strata)
    lost = weighted_values([np.array([of_task]) for of_task in strata])
    size = effective([len(of_task) for of_task in strata])
    assert row.budget is not None
    return Tried(
        row.budget,
        float(lost.mean()),
        upper_bound(lost[0], metric.largest, size, alpha),
        lost.shape[1],
        bool(below(lost, loss, metric.largest, size)[0] < alpha),
        samples_below(lost, loss, metric.largest, size, alpha)[0],
        mine.partial or whole.partial,
    )
