"""A grid of means, as tables have it: rows are methods within a budget, columns tasks, lengths or needles."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from statistics import fmean
from typing import Literal

from evals.results import statistics
from evals.results.pairing import Key, ids_of
from evals.results.record import Record

AVERAGE = "average"
AVERAGE_OF_16 = "average of 16"

Strata = Mapping[str, Mapping[Key, float]]
"""Values of samples by task and sample: those of another prompt are others, though they have the same id."""


@dataclass(frozen=True)
class Metric:
    """What a grid has the means of: a field of sample lines, or of measurements, and how `title` says it.

    `better`: which values are; None where none is better than another, as with tokens kept.
    """

    field: str
    title: str = ""
    digits: int = 2
    better: Literal["higher", "lower"] | None = "higher"


SCORE = Metric("score")


@dataclass(frozen=True)
class Cell:
    """A mean over tasks of the means of their samples, `strata`, with its 95 % interval.

    `of` samples are to be had, `counted` of them are there: fewer are `partial`. `published` is the paper's number,
    `source` where it was seen, and `apart` says why it cannot be compared with this one; "" if it can. `tasks`: over
    how many the mean should be; 0: over those that are there.
    """

    strata: Strata
    of: int
    counted: int
    published: float | None = None
    apart: str = ""
    digits: int = 2
    tasks: int = 0
    source: str = ""

    @property
    def n(self) -> int:
        return sum(map(len, self.strata.values()))

    @property
    def mean(self) -> float:
        """As published tables have it: the mean of task scores that are rounded like it."""
        of_tasks = [round(fmean(of_task.values()), self.digits) for of_task in self.strata.values()]
        return round(fmean(of_tasks), self.digits)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        return statistics.interval(*(list(of_task.values()) for of_task in self.strata.values()))

    @property
    def partial(self) -> bool:
        return self.counted != self.of or self.n != self.of

    @cached_property
    def samples(self) -> frozenset[tuple[str, Key]]:
        """By task."""
        return frozenset(_keys(self.strata))

    @property
    def ids(self) -> set[tuple[str, str]]:
        """By task."""
        return {(task, id) for task, values in self.strata.items() for id in ids_of(values)}

    def same_prompts(self, other: "Cell") -> bool:
        """Whether every id that both have is the same sample."""
        return len(self.samples & other.samples) == len(self.ids & other.ids)

    @property
    def difference(self) -> float | None:
        """From the published number; None where it is not comparable."""
        return None if self.published is None or self.apart else round(self.mean - self.published, self.digits)


def _keys(strata: Strata) -> Iterator[tuple[str, Key]]:
    for task, values in strata.items():
        for sample in values:
            yield task, sample


@dataclass(frozen=True)
class Row:
    """A method at a budget (tokens; None: the full cache) under a protocol. `variant`: what else sets it apart.

    `marked`: whether its label names the protocol, since the grid has several.
    """

    method: str
    budget: int | None
    protocol: str
    variant: str
    cells: Mapping[str, Cell]
    marked: bool = False
    records: Sequence[Record] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        protocol = f"({self.protocol})" if self.marked else ""
        return " ".join(filter(None, (self.method, protocol, self.variant)))

    @property
    def setting(self) -> str:
        """The label, with the budget."""
        return self.label if self.budget is None else f"{self.label} {self.budget}"


@dataclass(frozen=True)
class Grid:
    """All rows of a model, an evaluation and a metric; rows of one budget are together, as the paper has them.

    `compared`: the columns that rows are compared by; none: `overall`. `kind`: what the evaluation is (`Record.kind`).
    """

    model: str
    eval: str
    columns: Sequence[str]
    rows: Sequence[Row]
    metric: Metric = SCORE
    compared: Sequence[str] = ()
    kind: str = ""

    @property
    def overall(self) -> str:
        """The column of the average over everything; the last one where there is none."""
        return next((column for column in self.columns if column in (AVERAGE, AVERAGE_OF_16)), self.columns[-1])

    @property
    def budgets(self) -> dict[int | None, list[Row]]:
        groups: dict[int | None, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.budget, []).append(row)
        return groups


def ranks(column: str, rows: Sequence[Row], metric: Metric = SCORE, digits: int | None = None) -> dict[int, int]:
    """1 for the best and 2 for the second mean of a column, by the row's place; among rows with all of the samples.

    Rows with a part of them are never ranked, nor those with other prompts than most; means that are equal with so
    many `digits`, default: those of the metric, share their rank, and a single row has none.
    """
    if metric.better is None:
        return {}
    digits = metric.digits if digits is None else digits
    cells = {place: row.cells[column] for place, row in enumerate(rows) if column in row.cells}
    whole = {place: cell for place, cell in cells.items() if not cell.partial}
    usual = max(Counter(cell.samples for cell in whole.values()).items(), key=itemgetter(1), default=(None, 0))[0]
    same = {place: round(cell.mean, digits) for place, cell in whole.items() if cell.samples == usual}
    values = sorted(set(same.values()), reverse=metric.better == "higher")
    if len(same) < 2 or len(values) < 2:
        return {}
    return {place: values.index(value) + 1 for place, value in same.items() if value in values[:2]}
