"""Build `Table`s from the records of one model and evaluation. All evaluations make their tables with this module.

`evals/<evaluation>/tables.py` defines the columns of an evaluation. Without that file, an evaluation has a column for
every task and one for their average.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any

from compresskv.budget import largest_first
from evals.results.names import names, outside_method
from evals.results.record import Record, covered_lines
from evals.results.schema import Line, is_number
from evals.tables.methods import Name, named, place_of
from evals.tables.table import AVERAGE, FIDELITY, KEPT, SCORE, Cell, Key, Metric, Row, Table

Cells = dict[str, Cell]
"""Cells of a row by column."""

Values = dict[str, dict[Key, float]]
"""Values of samples by task and sample."""

CellsOf = Callable[[Sequence[Record], Metric], Cells]
"""Makes the cells of a row from its records; `Cell.of` is 0 if the number of existing samples is unknown."""

SIZES = ("realised_budget", "cache_bytes", "total_cache_bytes")
"""Fields of a summary that give the size of a setting's cache."""

MOST_LAYERS = 10_000

ALONG = ("kl", "agreement")
"""Metrics that depend on the tokens along which fidelity is measured."""


@dataclass(frozen=True)
class Asked:
    """Options of an experiment for an evaluation's tables: a `label` for the method of each record, and a `view`.

    A view selects the columns. "" is the default view. Every evaluation has the view `layers`: tokens kept by layer.
    """

    label: Callable[[Record], str] = lambda record: named(record.method)
    view: str = ""


USUAL = Asked()


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Make the tables of an evaluation that defines no columns."""
    several = len({record.task for record in records}) > 1

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        return (by_task(of_row, metric) if several else {}) | average(of_row, metric)

    return sampled(records, asked, cells_of)


def sampled(
    records: Sequence[Record],
    asked: Asked,
    cells_of: CellsOf,
    metrics: Sequence[Metric] = (SCORE, *FIDELITY),
    *,
    order: Callable[[str], Any] = lambda column: 0,
    failed: Callable[[Line, str], bool] = lambda line, column: column == AVERAGE,
    apart_by: Callable[[Record], str] = lambda record: "",
    **about: Any,
) -> list[Table]:
    """Make a table of the score and one of each other metric that the lines have.

    `records`, at least one, are of one model and evaluation. `order` is the sort key of columns; averages come last.
    `failed(line, column)` returns whether the failed sample of `line` counts as missing in a column; it always does in
    the column of its task. Records with different values of `apart_by` are named separately, so that they can share a
    row. `about` holds further fields of the tables.
    """
    if asked.view == "layers":
        about = {"axis": "layer", "xs": {f"layer {place}": place for place in range(MOST_LAYERS)}}
        cells_of, metrics, order, failed = _layers, (KEPT,), about["xs"].get, lambda line, column: True
    found = []
    rows = rows_of(records, asked, apart_by)
    end = about.get("average", AVERAGE)
    for metric in metrics:
        if metric is not metrics[0] and not any(line.get(metric.field) is not None for line in covered_lines(records)):
            continue
        by_column = [cells_of(row.records, metric) for row in rows]
        columns = dict.fromkeys(column for cells in by_column for column in cells)
        ordered = sorted(columns, key=lambda column: (column == end, 0 if column == end else order(column)))
        shown = filled(rows, by_column, metric, failed)
        found.append(Table(records[0].model, records[0].eval, ordered, shown, metric, **about))
    return found


def rows_of(
    records: Sequence[Record], asked: Asked = USUAL, apart_by: Callable[[Record], str] = lambda record: ""
) -> list[Row]:
    """Return rows without cells, each with its records of one or several tasks: full cache first, then by budget."""
    labels = [asked.label(record) for record in records]
    order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    marked = len({record.protocol for record in records}) > 1
    named_together: dict[tuple[str, str], list[Record]] = {}
    for record, label in zip(records, labels, strict=True):
        named_together.setdefault((label, apart_by(record)), []).append(record)
    rows: dict[Name, list[Record]] = {}
    outside = outside_method(records)
    for (label, _), same in named_together.items():
        for record, name in zip(same, names(same, outside=outside), strict=True):
            rows.setdefault(replace(name, method=label, marked=marked), []).append(record)

    def position(name: Name) -> tuple[Any, ...]:
        return largest_first(name.budget), name.when != "prompt", order[name.method], name.variant

    return [Row(name, sizes=_sizes(rows[name]), records=rows[name]) for name in sorted(rows, key=position)]


def _sizes(records: Sequence[Record]) -> dict[str, float]:
    """Return the mean over a setting's tasks of each field in `SIZES`."""
    summaries = [record.summary or {} for record in records]
    values = {field: [each[field] for each in summaries if is_number(each.get(field))] for field in SIZES}
    return {field: fmean(numbers) for field, numbers in values.items() if numbers}


def filled(
    rows: Sequence[Row],
    by_column: Sequence[Cells],
    metric: Metric,
    failed: Callable[[Line, str], bool] = lambda line, column: False,
) -> list[Row]:
    """Add cells to rows. Without an official number of samples, a cell's `of` counts the samples that any row has."""
    everything: dict[str, set[tuple[str, str]]] = {}
    for cells in by_column:
        for column, cell in cells.items():
            everything.setdefault(column, set()).update(cell.ids)
    for row in rows:
        for record in row.records:
            for id, line in record.failures.items():
                for column, ids in everything.items():
                    if column == record.task or failed(line, column):
                        ids.add((record.task, id))
    shown = []
    for row, cells in zip(rows, by_column, strict=True):
        whole: Cells = {}
        for column, cell in cells.items():
            of, counted = (cell.of, cell.counted) if cell.of else (len(everything[column]), cell.n)
            whole[column] = replace(cell, of=of, counted=counted, digits=metric.digits)
        shown.append(replace(row, cells=whole))
    return shown


def add(columns: dict[str, Values], column: str, task: str, record: Record, line: Line, metric: Metric) -> None:
    """Add the value of a record's line to a column if the line has the metric."""
    if line.get(metric.field) is not None:
        columns.setdefault(column, {}).setdefault(task, {})[key(record, line, metric.field)] = line[metric.field]


def cells(columns: Mapping[str, Values]) -> Cells:
    """Make cells whose number of existing samples is unknown."""
    return {column: Cell(values) for column, values in columns.items()}


def average(records: Sequence[Record], metric: Metric) -> Cells:
    """Make the cell of the mean over all samples, with the same weight for every task."""
    return by_line(records, metric, lambda line: AVERAGE)


def by_task(records: Sequence[Record], metric: Metric) -> Cells:
    """Make a cell for every task."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.task, []).append(record)
    return {task: cell for task, same in by_name.items() for cell in average(same, metric).values()}


def by_line(records: Sequence[Record], metric: Metric, column_of: Callable[[Line], str | None]) -> Cells:
    """Make a cell for every column that `column_of` returns for a line; lines for which it returns None are skipped."""
    columns: dict[str, Values] = {}
    for record in records:
        for line in record.covered:
            if (column := column_of(line)) is not None:
                add(columns, column, record.task, record, line, metric)
    return cells(columns)


def layer_means(line: Line) -> list[float]:
    """Return the tokens kept by each layer, as the mean over its KV heads; empty if the line has no `kept`."""
    kept = line.get("kept")
    if not isinstance(kept, list):
        return []
    return [fmean(layer) if isinstance(layer, list) else float(layer) for layer in kept]


def _layers(records: Sequence[Record], metric: Metric) -> Cells:
    """Make a cell for every layer, with the mean tokens kept of a prompt over its KV heads, and one for all layers."""
    columns: dict[str, Values] = {}
    for record in records:
        for line in record.covered:
            if tokens := layer_means(line):
                named = {f"layer {place}": value for place, value in enumerate(tokens)} | {AVERAGE: fmean(tokens)}
                for column, value in named.items():
                    columns.setdefault(column, {}).setdefault(record.task, {})[key(record, line)] = value
    return cells(columns)


def key(record: Record, line: Line, metric: str = "") -> Key:
    """Return the key that identifies the sample of a record's line, for a `metric`.

    Distances from the full cache are measured along its answer or along a number of tokens. For these distances, only
    lines that were measured along the same kind of tokens have the same key.

    Lines of older versions and of published trees have no hash of their prompt. Their key uses the summary's
    description of all prompts instead, so they pair with each other but never with lines that have a hash.
    """
    sample = f"{record.weights} {line.get('prompt_sha256') or record.prompts}"
    if metric in ALONG and isinstance(along := record.config.get("fidelity"), Mapping):
        sample += f" along {along.get('tokens')} tokens"
    return line["id"], sample


def values_of(record: Record, metric: str) -> dict[Key, float]:
    """Return the metric of each sample that has a number as its value."""
    return {key(record, line, metric): float(line[metric]) for line in record.covered if is_number(line.get(metric))}


def groups_of(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield the records of each model and evaluation, sorted by method as in the paper."""

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.kind

    for _, group in groupby(sorted(records, key=place), key=place):
        yield sorted(group, key=lambda record: place_of(record.method))
