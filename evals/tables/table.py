"""`Table`: means in columns, such as tasks or prompt lengths, and rows of settings, together by their budget.

An evaluation makes its tables (`evals/<evaluation>/tables.py`). The terminal, Markdown, LaTeX, CSV, the page, figures
and W&B render them, and know nothing of the evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from statistics import fmean
from typing import Any, Literal

from compresskv.budget import Budget, Share
from evals.tables import statistics
from evals.tables.methods import Name

AVERAGE = "average"

Key = tuple[str, str]
"""A sample's id, and what tells its prompt and weights from others of this id."""

Strata = Mapping[str, Mapping[Key, float]]
"""Values of samples by task and sample."""


@dataclass(frozen=True)
class Metric:
    """A field of sample lines, or of measurements, and how `title` says it.

    `better`: which values are better; None where neither is, as with tokens kept. `axis`: its label in a figure.
    `margin`: means that differ by less are equivalent, where the user states nothing else; None: not tested. `largest`:
    the largest difference of two values; None where it has no limit.
    """

    field: str
    title: str = ""
    digits: int = 2
    better: Literal["higher", "lower"] | None = "higher"
    axis: str = ""
    margin: float | None = None
    largest: float | None = None


SCORE = Metric("score", margin=2.0, largest=100.0)

KEPT = Metric("kept", "KV tokens kept per head", better=None)

FIDELITY = (
    Metric("kl", "KL divergence from the full cache, nats per token", 4, "lower", margin=0.02),
    Metric("agreement", "share of tokens on which it agrees with the full cache", 4, margin=0.02, largest=1.0),
    Metric("reference_nll", "negative log-likelihood of the reference answer, nats per token", 4, "lower", margin=0.02),
)
"""What lines have beside the score where `fidelity=true`."""

KNOWN = {metric.field: metric for metric in (SCORE, *FIDELITY)}
"""The metrics of every evaluation, by their field."""


@dataclass(frozen=True)
class Cell:
    """A mean over tasks of the means of their samples, `strata`, with its 95 % interval.

    `of` samples exist, `counted` of them are here: with fewer the cell is `partial`. `tasks`: how many tasks the mean
    should be over; 0: those that are here. `published` is the paper's number, `source` where it was seen, and `apart`
    why it cannot be compared with this one; "" if it can.
    """

    strata: Strata
    of: int = 0
    counted: int = 0
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
        return frozenset((task, sample) for task, values in self.strata.items() for sample in values)

    @property
    def ids(self) -> set[tuple[str, str]]:
        """By task."""
        return {(task, id) for task, (id, _) in self.samples}

    def same_prompts(self, other: Cell) -> bool:
        """Whether every id that both have is the same sample."""
        return len(self.samples & other.samples) == len(self.ids & other.ids)

    @property
    def difference(self) -> float | None:
        """From the published number; None where it is not comparable."""
        return None if self.published is None or self.apart else round(self.mean - self.published, self.digits)


@dataclass(frozen=True)
class Row:
    """The cells of a setting by column.

    `apart`: why no published number can be compared with it; "" if its evaluation knows no reason. `kept`: tokens that
    each layer keeps. `sizes`: what the setting takes, by field of a summary. `records`: what it was made from, for the
    figures of its evaluation.
    """

    name: Name
    cells: Mapping[str, Cell] = field(default_factory=dict)
    apart: str = ""
    sizes: Mapping[str, float] = field(default_factory=dict)
    records: Sequence[Any] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        return self.name.label

    @property
    def budget(self) -> Budget | None:
        return self.name.budget

    @property
    def when(self) -> str:
        return self.name.when

    @property
    def protocol(self) -> str:
        return self.name.protocol


def full_of(row: Row, fulls: Sequence[Row]) -> Row | None:
    """The full cache that a row is measured against: of its protocol and its time of eviction.

    Where there are several, such as one for each dtype, it is that of its variant; None if none is.
    """
    fitting = [full for full in fulls if (full.protocol, full.when) == (row.protocol, row.when)]
    alike = [full for full in fitting if full.name.variant == row.name.variant]
    return next(iter(alike or (fitting if len(fitting) == 1 else [])), None)


@dataclass(frozen=True)
class Table:
    """All rows of a model, an evaluation and a metric.

    `average`: the column of the mean over everything, where there is one. `heads`: columns as papers write them;
    `spans`: what stands above columns, such as a kind of tasks; `sums`: columns that are means over other columns.
    `compared`: the columns that rows are compared by; none: `overall`. `xs`: the places of columns on an axis, where
    they have some, and `axis` its label, where lines over the columns are how the table is drawn. `counted`: what the
    samples are that a partial mean has a part of. `failed`: samples, by row and column, that have no result.
    """

    model: str
    eval: str
    columns: Sequence[str]
    rows: Sequence[Row]
    metric: Metric = SCORE
    average: str = AVERAGE
    compared: Sequence[str] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    spans: Mapping[str, str] = field(default_factory=dict)
    sums: Sequence[str] = ()
    xs: Mapping[str, float] = field(default_factory=dict)
    axis: str = ""
    counted: str = "samples that other rows have"
    caption: str = ""

    @property
    def overall(self) -> str:
        """The column of the average over everything; the last one where there is none."""
        return self.average if self.average in self.columns else self.columns[-1]

    @property
    def budgets(self) -> dict[Budget | None, list[Row]]:
        groups: dict[Budget | None, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.budget, []).append(row)
        return groups

    @property
    def comparable(self) -> dict[tuple[Budget | None, str], list[Row]]:
        """The rows of each budget and each time of eviction: only these are compared with each other."""
        groups: dict[tuple[Budget | None, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.budget, row.when), []).append(row)
        return groups

    @property
    def has_whens(self) -> bool:
        """Whether rows differ in when eviction happens, so that it is a column."""
        return len({row.when for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """The name of a row without its budget, and without what has a column."""
        return replace(row.name, when="prompt").label if self.has_whens else row.label

    @property
    def budget_axis(self) -> str:
        """The label of an axis of budgets."""
        if any(isinstance(row.budget, int) for row in self.rows):
            return "budget (KV tokens per layer and head)"
        return "budget (% of the compressed tokens)"

    def place_of_budget(self, row: Row) -> float:
        """Where the budget of a row is on that axis. Beside budgets in tokens, a share is where it is in the mean."""
        if not isinstance(row.budget, Share):
            return row.budget or 0
        kept = row.sizes.get("realised_budget")
        in_tokens = any(isinstance(other.budget, int) for other in self.rows)
        return kept if in_tokens and kept else float(row.budget.percent)

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells.values()]

    def head(self, column: str) -> str:
        """A column as papers write it."""
        return self.heads.get(column, column)

    def ranks(self, column: str, rows: Sequence[Row] | None = None, digits: int | None = None) -> dict[int, int]:
        """1 for the best and 2 for the second mean of a column, by the row's place; of `rows`, default: all.

        Rows over part of the samples are never ranked, nor those with other prompts than most rows. Rows that evict
        before the question are ranked apart from the others. Means that are equal with `digits`, default: those of the
        metric, share their rank. A single row has none.
        """
        if self.metric.better is None:
            return {}
        digits = self.metric.digits if digits is None else digits
        cells = [(row.when, row.cells.get(column)) for row in (self.rows if rows is None else rows)]
        ranked: dict[int, int] = {}
        for when in dict.fromkeys(when for when, _ in cells):
            alike = {place: cell for place, (other, cell) in enumerate(cells) if cell and other == when}
            ranked |= self._ranked(alike, digits)
        return ranked

    def _ranked(self, cells: Mapping[int, Cell], digits: int) -> dict[int, int]:
        """1 for the best and 2 for the second of these cells, by their place."""
        whole = {place: cell for place, cell in cells.items() if not cell.partial}
        usual = max(Counter(cell.samples for cell in whole.values()).items(), key=itemgetter(1), default=(None, 0))[0]
        same = {place: round(cell.mean, digits) for place, cell in whole.items() if cell.samples == usual}
        values = sorted(set(same.values()), reverse=self.metric.better == "higher")
        if len(same) < 2 or len(values) < 2:
            return {}
        return {place: values.index(value) + 1 for place, value in same.items() if value in values[:2]}


@dataclass(frozen=True)
class Texts:
    """A table of other things than means; the first column names a row."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Shown:
    """What an evaluation that measures by itself shows of its files.

    `appendix`: tables that follow everything else. `notes`: sentences that a reader of the numbers needs. `frames` make
    what is written as CSV, `figures` draw what is written as images, by the name of the file.
    """

    tables: Sequence[Table] = ()
    texts: Sequence[Texts] = ()
    appendix: Sequence[Texts] = ()
    notes: Sequence[str] = ()
    frames: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A part of a section of the page: below `title`, its tables of texts, and lines over the columns of `charts`."""

    title: str
    note: str = ""
    environment: Mapping[str, Any] | None = None
    texts: Sequence[Texts] = ()
    charts: Sequence[Any] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page. `panels`: heatmaps by setting; `maps`: heatmaps of which one is shown at a time.

    `published`: the experiment whose published numbers the tables show; "" if none.
    """

    id: str
    title: str
    about: str = ""
    note: str = ""
    published: str = ""
    blocks: Sequence[Block] = ()
    panels: Sequence[Mapping[str, Any]] = ()
    maps: Sequence[Mapping[str, Any]] = ()


OTHERS = Section("others", "Other tasks")
"""Where evaluations are shown that name no section."""
