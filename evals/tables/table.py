"""`Table`: means with columns such as tasks or prompt lengths, and rows of settings grouped by budget.

Evaluations make their tables in `evals/<evaluation>/tables.py`. The renderers (terminal, Markdown, LaTeX, CSV, page,
figures, W&B) do not depend on the evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from compresskv.budget import Budget, Share
from compresskv.schedule import once
from evals.tables import statistics
from evals.tables.methods import Name

AVERAGE = "average"

Key = tuple[str, str]
"""A sample's id, and a text that identifies its prompt and the model's weights."""

Strata = Mapping[str, Mapping[Key, float]]
"""Values of samples by task and sample."""


@dataclass(frozen=True)
class Metric:
    """A field of sample lines or measurements, with its `title`.

    `better`: which values are better; None if neither, as for tokens kept. `axis`: label in a figure. `margin`: means
    that differ by less are equivalent, by default; None: not tested. `largest`: the largest possible difference of two
    values; None without a limit.
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
"""Metrics that lines have in addition to the score with `fidelity=true`."""

KNOWN = {metric.field: metric for metric in (SCORE, *FIDELITY)}
"""The metrics of every evaluation, by their field."""


@dataclass(frozen=True)
class Cell:
    """The mean over tasks of the means of their samples, `strata`, with its 95 % interval.

    - `of`: number of existing samples; `counted`: number of samples in this cell. If they differ, the cell is
    `partial`.
    - `tasks`: number of tasks that the mean should cover; 0 for the tasks of this cell.
    - `published`, `source`: the paper's number, and its source.
    - `apart`: the reason why the paper's number cannot be compared with this mean; "" if it can be compared.
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
        """The mean computed as in published tables: from task scores that are rounded to the same digits."""
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
        """The samples as pairs of task and key."""
        return frozenset((task, sample) for task, values in self.strata.items() for sample in values)

    @property
    def ids(self) -> set[tuple[str, str]]:
        """The samples as pairs of task and id."""
        return {(task, id) for task, (id, _) in self.samples}

    def same_prompts(self, other: Cell) -> bool:
        """Return whether each id that both cells have is the same sample in both."""
        return len(self.samples & other.samples) == len(self.ids & other.ids)

    @property
    def difference(self) -> float | None:
        """The difference from the published number; None if they cannot be compared."""
        return None if self.published is None or self.apart else round(self.mean - self.published, self.digits)


@dataclass(frozen=True)
class Row:
    """The cells of a setting by column.

    `apart`: the reason why no published number can be compared with the row; "" if no reason is known. `sizes`: sizes
    of the setting's cache by field of a summary. `records`: the records that the row was made from, for the
    evaluation's figures.
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
    """Return the full cache that a row is compared with: it has the row's protocol and time of eviction.

    The full cache does not evict while decoding, so `prompt+decode` rows use the full cache of `prompt`. If there are
    several full caches, such as one for each dtype, the full cache with the row's variant is used; None if no full
    cache fits.
    """
    fitting = [full for full in fulls if (full.protocol, full.when) == (row.protocol, once(row.when))]
    alike = [full for full in fitting if full.name.variant == row.name.variant]
    return next(iter(alike or (fitting if len(fitting) == 1 else [])), None)


@dataclass(frozen=True)
class Table:
    """All rows of a model, an evaluation and a metric.

    - `average`: name of the column with the mean over everything, if any.
    - `compared`: columns by which rows are compared; if empty, by `overall`.
    - `heads`: column headings as papers write them; `spans`: headings above columns, such as a kind of tasks.
    - `sums`: columns that are means over other columns.
    - `xs`, `axis`: positions of columns on an axis, and its label, if the table is drawn as lines over the columns.
    - `counted`: description of the full set of samples, for the note on partial means.
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
        """The column of the average over everything; the last column if the table has no average."""
        return self.average if self.average in self.columns else self.columns[-1]

    @property
    def budgets(self) -> dict[Budget | None, list[Row]]:
        groups: dict[Budget | None, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.budget, []).append(row)
        return groups

    @property
    def comparable(self) -> list[list[Row]]:
        """Groups of rows with the same budget, time of eviction and protocol. Only rows of one group are compared."""
        groups: dict[tuple[Budget | None, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.budget, row.when, row.protocol), []).append(row)
        return list(groups.values())

    @property
    def has_whens(self) -> bool:
        """Whether rows differ in the time of eviction, which is then a column."""
        return len({row.when for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """Return the name of a row without its budget, and without the time of eviction if the time is a column."""
        return replace(row.name, when="prompt").label if self.has_whens else row.label

    @property
    def budget_axis(self) -> str:
        """The label of an axis of budgets."""
        if any(isinstance(row.budget, int) for row in self.rows):
            return "budget (KV tokens per layer and head)"
        return "budget (% of the compressed tokens)"

    def place_of_budget(self, row: Row) -> float:
        """Return the position of a row's budget on that axis.

        If other budgets are in tokens, a share is at the mean number of tokens that it keeps.
        """
        if not isinstance(row.budget, Share):
            return row.budget or 0
        kept = row.sizes.get("realised_budget")
        in_tokens = any(isinstance(other.budget, int) for other in self.rows)
        return kept if in_tokens and kept else float(row.budget.percent)

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells.values()]

    def head(self, column: str) -> str:
        """Return the heading of a column."""
        return self.heads.get(column, column)

    def ranks(self, column: str, rows: Sequence[Row] | None = None, digits: int | None = None) -> dict[int, int]:
        """Rank the means of a column: by index into `rows` (default: all), 1 for the best and 2 for the second mean.

        Rows with only part of the samples, or with different prompts than most rows, are not ranked. Rows are ranked
        separately for each time of eviction and protocol. Means that are equal when rounded to `digits` (default: the
        metric's digits) share their rank. A single row is not ranked.
        """
        if self.metric.better is None:
            return {}
        digits = self.metric.digits if digits is None else digits
        groups: dict[tuple[str, str], dict[int, Cell]] = {}
        for place, row in enumerate(self.rows if rows is None else rows):
            if (cell := row.cells.get(column)) and not cell.partial:
                groups.setdefault((row.when, row.protocol), {})[place] = cell
        ranked: dict[int, int] = {}
        for cells in groups.values():
            ((usual, _),) = Counter(cell.samples for cell in cells.values()).most_common(1)
            means = {place: round(cell.mean, digits) for place, cell in cells.items() if cell.samples == usual}
            best = sorted(set(means.values()), reverse=self.metric.better == "higher")[:2]
            if len(best) == 2:
                ranked |= {place: best.index(mean) + 1 for place, mean in means.items() if mean in best}
        return ranked


@dataclass(frozen=True)
class Texts:
    """A table of text instead of means. The first column holds the names of the rows."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Shown:
    """Output of an evaluation without samples, made from its files.

    `appendix`: tables after everything else. `notes`: sentences that explain the numbers. `frames` and `figures`:
    functions by file name that make the data of CSV files and draw images.
    """

    tables: Sequence[Table] = ()
    texts: Sequence[Texts] = ()
    notes: Sequence[str] = ()
    frames: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    appendix: Sequence[Texts] = ()


@dataclass(frozen=True)
class Block:
    """A part of a section of the page: a `title`, tables of text, and `charts`, drawn as lines over their columns."""

    title: str
    note: str = ""
    environment: Mapping[str, Any] | None = None
    texts: Sequence[Texts] = ()
    charts: Sequence[Any] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page. `panels`: heatmaps by setting; `maps`: heatmaps that are shown one at a time.

    `published`: the experiment whose published numbers the tables show; "" for no published numbers.
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
"""Section for evaluations that define no section."""
