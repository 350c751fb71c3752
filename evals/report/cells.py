"""From the records of one model and evaluation to a grid of means: rows are methods within a budget, columns tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

from evals.report.items import Item
from evals.report.labels import tokens_label
from evals.results import statistics
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import Line

AVERAGE = "average"
AVERAGE_OF_16 = "average of 16"

Strata = Mapping[str, Mapping[str, float]]
"""Values of samples by task and id."""


@dataclass(frozen=True)
class Cell:
    """A mean over tasks of the means of their samples, `strata`, with its 95 % interval.

    `of` samples are to be had, `counted` of them are there: fewer are `partial`. `published` is the paper's number, and
    `apart` says why it cannot be compared with this one; "" if it can.
    """

    strata: Strata
    of: int
    counted: int
    published: float | None = None
    apart: str = ""

    @property
    def n(self) -> int:
        return sum(map(len, self.strata.values()))

    @property
    def mean(self) -> float:
        """As published tables have it: the mean of task scores with two decimals."""
        return round(fmean(round(fmean(of_task.values()), 2) for of_task in self.strata.values()), 2)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        return statistics.interval(*(list(of_task.values()) for of_task in self.strata.values()))

    @property
    def partial(self) -> bool:
        return self.counted != self.of or self.n != self.of

    @cached_property
    def samples(self) -> frozenset[tuple[str, str]]:
        return frozenset(_keys(self.strata))

    @property
    def difference(self) -> float | None:
        """From the published number; None where it is not comparable."""
        return None if self.published is None or self.apart else round(self.mean - self.published, 2)


def _keys(strata: Strata) -> Iterator[tuple[str, str]]:
    for task, values in strata.items():
        for id in values:
            yield task, id


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


@dataclass(frozen=True)
class Grid:
    """All rows of a model and an evaluation; rows of one budget are together, as the paper has them."""

    model: str
    eval: str
    columns: Sequence[str]
    rows: Sequence[Row]

    @property
    def last(self) -> str:
        """The column of the average over everything."""
        return self.columns[-1]

    @property
    def budgets(self) -> dict[int | None, list[Row]]:
        groups: dict[int | None, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.budget, []).append(row)
        return groups


def rows_of(item: Item, records: Sequence[Record]) -> list[tuple[Row, list[Record]]]:
    """Rows without cells, each with its records of one or several tasks: the full cache, then the largest budgets."""
    labels = [item.label(record.method, record.config) for record in records]
    order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    rows: dict[tuple[str, int | None, str, str], list[Record]] = {}
    for label in order:
        same = [record for record, other in zip(records, labels, strict=True) if other == label]
        for record, name in zip(same, names(same), strict=True):
            plain = record.method if record.budget is None else f"{record.method} {record.budget}"
            variant = name.removeprefix(plain).strip().removeprefix(f"({record.protocol})").strip()
            rows.setdefault((label, record.budget, record.protocol, variant), []).append(record)
    ordered = sorted(rows, key=lambda key: (-(key[1] or float("inf")), order[key[0]], key[3]))
    marked = len({record.protocol for record in records}) > 1
    return [(Row(*key, {}, marked), rows[key]) for key in ordered]


def grid(item: Item, records: Sequence[Record]) -> Grid:
    """The grid of records of one model and evaluation, at least one."""
    rows = rows_of(item, records)
    if item.columns == "layers":
        by_column = [_layers(of_row) for _, of_row in rows]
    elif records[0].eval == "longbench":
        by_column = [_longbench(of_row) for _, of_row in rows]
    else:
        by_column = [_needles(of_row) for _, of_row in rows]
    columns = _columns(by_column)
    everything = {column: set[tuple[str, str]]() for column in columns}
    for cells in by_column:
        for column, cell in cells.items():
            everything[column] |= cell.samples
    for column in columns:
        everything[column] |= _failed(records, column)
    shown = []
    for (row, of_row), cells in zip(rows, by_column, strict=True):
        filled = {}
        for column, cell in cells.items():
            # Without an official number of samples, all is what any row has.
            of, counted = (cell.of, cell.counted) if cell.of else (len(everything[column]), cell.n)
            filled[column] = Cell(cell.strata, of, counted)
        shown.append(replace(row, cells=filled, records=of_row))
    return Grid(records[0].model, records[0].eval, columns, shown)


def _failed(records: Sequence[Record], column: str) -> set[tuple[str, str]]:
    """The samples, by task and id, that some record tried without a result, and that `column` should have."""
    failed = set()
    for record in records:
        for id, line in record.failures.items():
            length = line.get("length")
            of_length = isinstance(length, int) and column == tokens_label(length)
            if of_length or column == AVERAGE or column.startswith("layer "):
                failed.add((record.task, id))
    return failed


def _columns(by_column: Sequence[Mapping[str, Cell]]) -> list[str]:
    """All columns, in the order of the row that has most; averages last."""
    ordered: dict[str, None] = {}
    for cells in sorted(by_column, key=len, reverse=True):
        ordered |= dict.fromkeys(cells)
    last = [column for column in ordered if column in (AVERAGE, AVERAGE_OF_16)]
    return [column for column in ordered if column not in last] + last


def _needles(records: Sequence[Record]) -> dict[str, Cell]:
    """A cell for every prompt length, shortest first, and their average."""
    strata: dict[int, dict[str, dict[str, float]]] = {}
    everything: dict[str, dict[str, float]] = {}
    for record in records:
        for line in record.covered:
            length = line.get("length")
            if isinstance(length, int):
                strata.setdefault(length, {}).setdefault(record.task, {})[line["id"]] = line["score"]
            everything.setdefault(record.task, {})[line["id"]] = line["score"]
    cells = {tokens_label(length): Cell(strata[length], 0, 0) for length in sorted(strata)}
    return {**cells, AVERAGE: Cell(everything, 0, 0)}


def _layers(records: Sequence[Record]) -> dict[str, Cell]:
    """A cell for every layer: the tokens that it keeps of a prompt, mean over its KV heads, and the mean layer."""
    kept: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        for line in record.covered:
            tokens = [fmean(layer) if isinstance(layer, list) else float(layer) for layer in line["kept"]]
            for place, value in enumerate(tokens):
                kept.setdefault(f"layer {place}", {}).setdefault(record.task, {})[line["id"]] = value
            kept.setdefault(AVERAGE, {}).setdefault(record.task, {})[line["id"]] = fmean(tokens)
    mean = kept.pop(AVERAGE)
    return {**{name: Cell(strata, 0, 0) for name, strata in kept.items()}, AVERAGE: Cell(mean, 0, 0)}


def _longbench(records: Sequence[Record]) -> dict[str, Cell]:
    """A cell for every task, every category, and all 16; only official rows count as there."""
    from evals.longbench.table import score
    from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS

    values: dict[str, dict[str, float]] = {}
    counted: dict[str, int] = {}
    for record in sorted(records, key=lambda record: list(TASKS).index(record.task)):
        lines: Sequence[Line] = record.covered
        result = score(record.task, lines)
        values[record.task] = {line["id"]: line["score"] for line in lines}
        foreign = result.check.mismatching if result.check else 0
        counted[record.task] = len(lines) - foreign

    def mean_over(tasks: Sequence[str]) -> Cell | None:
        there = [task for task in tasks if task in values]
        of = sum(TASKS[task].n for task in tasks)
        return Cell({task: values[task] for task in there}, of, sum(map(counted.__getitem__, there))) if there else None

    wanted: dict[str, Sequence[str]] = {task: [task] for task in values}
    for category in CATEGORIES:
        wanted[category] = [task for task in ENGLISH if TASKS[task].category == category]
    wanted[AVERAGE_OF_16] = ENGLISH
    means = {name: mean_over(tasks) for name, tasks in wanted.items()}
    return {name: cell for name, cell in means.items() if cell is not None}


def ranks(column: str, rows: Sequence[Row]) -> dict[int, int]:
    """1 for the best and 2 for the second mean of a column, by the row's place; among rows that have most samples.

    Rows with fewer are never ranked with them; equal means share their rank, and a single row has none.
    """
    cells = {place: row.cells[column] for place, row in enumerate(rows) if column in row.cells}
    widest = max((cell.samples for cell in cells.values()), key=len, default=frozenset())
    same = {place: cell.mean for place, cell in cells.items() if cell.samples == widest}
    values = sorted(set(same.values()), reverse=True)
    if len(same) < 2 or len(values) < 2:
        return {}
    return {place: values.index(value) + 1 for place, value in same.items() if value in values[:2]}
