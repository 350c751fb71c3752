"""From the records of one model and evaluation to grids: a column for every task, length, layer or needle."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import Any

from evals.longbench import tasks as longbench
from evals.niah.needles import needles
from evals.report.cells import AVERAGE, AVERAGE_OF_16, SCORE, Cell, Grid, Metric, Row
from evals.report.items import Item
from evals.report.labels import METHODS, tokens_label, tokens_of
from evals.results.names import names
from evals.results.pairing import Key, ids_of, key
from evals.results.record import Record
from evals.results.schema import Line

KEPT = Metric("kept", "KV tokens kept per head", better=None)

FIDELITY = (
    Metric("kl", "KL divergence from the full cache, nats per token", 4, "lower"),
    Metric("agreement", "share of tokens on which it agrees with the full cache", 4),
    Metric("reference_nll", "negative log-likelihood of the reference answer, nats per token", 4, "lower"),
)
"""What lines have beside the score where `fidelity=true`."""

Cells = dict[str, Cell]
"""By column."""

Values = dict[str, dict[Key, float]]
"""Of samples, by task and sample."""


def grids(item: Item, records: Sequence[Record]) -> list[Grid]:
    """The grids of records of one model and evaluation, at least one: of scores or tokens, and of their fidelity."""
    if item.columns == "layers":
        return [grid_of(item, records, KEPT)]
    carried = [metric for metric in FIDELITY if any(_has(record, metric) for record in records)]
    return [grid_of(item, records, metric) for metric in (SCORE, *carried)]


def groups_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records of each model and evaluation whose rows are methods, in the order that papers have methods in."""

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.kind

    order = {name: number for number, name in enumerate(METHODS)}
    for (_, _, kind), group in groupby(sorted(records, key=place), key=place):
        known = [record for record in group if kind != "longbench" or record.task in longbench.TASKS]
        if known and kind != "head_masking":
            yield sorted(known, key=lambda record: order.get(record.method, len(order)))


def by_task(of_model: Grid) -> Grid:
    """The same rows with a column for every task, and the average; where columns are others, as they are."""
    if of_model.kind in ("longbench", "niah"):
        return of_model
    ids: dict[str, set[str]] = {}
    for row in of_model.rows:
        for task, values in row.cells[of_model.overall].strata.items():
            ids.setdefault(task, set()).update(ids_of(values))
    rows = []
    for row in of_model.rows:
        whole = row.cells[of_model.overall]
        cells = {task: Cell({task: values}, len(ids[task]), len(values)) for task, values in whole.strata.items()}
        rows.append(replace(row, cells={**cells, of_model.overall: whole}))
    return replace(of_model, columns=[*ids, of_model.overall], rows=rows) if len(ids) > 1 else of_model


def rows_of(item: Item, records: Sequence[Record]) -> list[tuple[Row, list[Record]]]:
    """Rows without cells, each with its records of one or several tasks: the full cache, then the largest budgets."""
    labels = [item.label(record) for record in records]
    order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    rows: dict[tuple[str, int | None, str, str], list[Record]] = {}
    for label in order:
        same = [record for record, other in zip(records, labels, strict=True) if other == label]
        # Haystacks that are columns set no row apart.
        for place in _places(item, same):
            for record, variant in zip(place, variants(place), strict=True):
                rows.setdefault((label, record.budget, record.protocol, variant), []).append(record)
    ordered = sorted(rows, key=lambda key: (-(key[1] or float("inf")), order[key[0]], key[3]))
    marked = len({record.protocol for record in records}) > 1
    return [(Row(*key, {}, marked), rows[key]) for key in ordered]


def variants(records: Sequence[Record]) -> list[str]:
    """What sets each apart from others of its method, budget and protocol; "" where nothing does."""
    found = []
    for record, name in zip(records, names(records), strict=True):
        plain = record.method if record.budget is None else f"{record.method} {record.budget}"
        found.append(name.removeprefix(plain).strip().removeprefix(f"({record.protocol})").strip())
    return found


def filled(rows: Sequence[tuple[Row, list[Record]]], by_column: Sequence[Cells], metric: Metric) -> list[Row]:
    """The rows with their cells. Without an official number of samples, all is what any row has of a column."""
    everything: dict[str, set[tuple[str, str]]] = {}
    for cells in by_column:
        for column, cell in cells.items():
            everything.setdefault(column, set()).update(cell.ids)
    records = [record for _, of_row in rows for record in of_row]
    for column, ids in everything.items():
        ids.update(_failed(records, column))
    shown = []
    for (row, of_row), cells in zip(rows, by_column, strict=True):
        whole: Cells = {}
        for column, cell in cells.items():
            of, counted = (cell.of, cell.counted) if cell.of else (len(everything[column]), cell.n)
            whole[column] = replace(cell, of=of, counted=counted, digits=metric.digits)
        shown.append(replace(row, cells=whole, records=of_row))
    return shown


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


def layer_means(line: Line) -> list[float]:
    """Tokens kept by each layer, mean over its KV heads; empty where the line does not say."""
    kept = line.get("kept")
    if not isinstance(kept, list):
        return []
    return [fmean(layer) if isinstance(layer, list) else float(layer) for layer in kept]


def haystack_label(record: Record) -> str:
    """The haystack of a record's needles: the last parts of its places."""
    named = record.config.get("eval", {}).get("haystack", "")
    places = named.split(",") if isinstance(named, str) else named
    return " and ".join(str(place).rstrip("/").rpartition("/")[2].partition(".")[0] for place in places)


def _places(item: Item, records: Sequence[Record]) -> list[list[Record]]:
    if item.columns != "needles":
        return [list(records)]
    by_haystack: dict[str, list[Record]] = {}
    for record in records:
        by_haystack.setdefault(haystack_label(record), []).append(record)
    return list(by_haystack.values())


def grid_of(item: Item, records: Sequence[Record], metric: Metric) -> Grid:
    """The grid of a metric, of records of one model and evaluation, at least one."""
    rows = rows_of(item, records)
    cells_of, place = _cells_of(item, records[0].kind)
    by_column = [cells_of(of_row, metric) for _, of_row in rows]
    columns = ordered(by_column, place)
    compared = columns if item.columns == "needles" else ()
    shown = filled(rows, by_column, metric)
    return Grid(records[0].model, records[0].eval, columns, shown, metric, compared, records[0].kind)


def _cells_of(item: Item, kind: str) -> tuple[Callable[[Sequence[Record], Metric], Cells], Callable[[str], Any]]:
    """What makes the cells of a row, and the place of a column among all that any row has."""
    if item.columns == "layers":
        return _layers, lambda column: int(column.rpartition(" ")[2])
    if kind == "longbench":
        from evals.longbench.tasks import CATEGORIES, TASKS

        columns = [*TASKS, *(item.groups or CATEGORIES)]
        return lambda records, metric: _longbench(records, metric, item.groups), columns.index
    if item.columns == "needles":
        kinds = ["configured", *(needle.kind for needle in needles(10))]
        return _needle_kinds, lambda column: kinds.index(column) if column in kinds else len(kinds)
    return _lengths, tokens_of


def ordered(by_column: Sequence[Mapping[str, Cell]], place: Callable[[str], Any]) -> list[str]:
    """The columns that any row has, by their `place` and then as they come; averages last."""
    columns: dict[str, None] = {}
    for cells in by_column:
        columns |= dict.fromkeys(cells)
    averages = [column for column in columns if column in (AVERAGE, AVERAGE_OF_16)]
    return sorted([column for column in columns if column not in averages], key=place) + averages


def _has(record: Record, metric: Metric) -> bool:
    return any(line.get(metric.field) is not None for line in record.covered)


def _add(columns: dict[str, Values], column: str, task: str, record: Record, line: Line, metric: Metric) -> None:
    """Count a record's line into a column, if it has the metric."""
    if line.get(metric.field) is not None:
        columns.setdefault(column, {}).setdefault(task, {})[key(record, line)] = line[metric.field]


def _open(columns: Mapping[str, Values]) -> Cells:
    """Cells of which nobody says how many samples there are to be had."""
    return {column: Cell(values, 0, 0) for column, values in columns.items()}


def _lengths(records: Sequence[Record], metric: Metric) -> Cells:
    """A cell for every prompt length, shortest first, and their average."""
    columns: dict[str, Values] = {}
    lines = [(record, line) for record in records for line in record.covered]
    for record, line in sorted(lines, key=lambda pair: pair[1].get("length") or 0):
        if isinstance(line.get("length"), int):
            _add(columns, tokens_label(line["length"]), record.task, record, line, metric)
    for record, line in lines:
        _add(columns, AVERAGE, record.task, record, line, metric)
    return _open(columns)


def _needle_kinds(records: Sequence[Record], metric: Metric) -> Cells:
    """A cell for every kind of needle, over all haystacks; one for every haystack, over all needles; their average."""
    kinds: dict[str, Values] = {}
    haystacks: dict[str, Values] = {}
    for record in records:
        haystack = haystack_label(record)
        for line in record.covered:
            _add(kinds, _kind(record, line), haystack, record, line, metric)
            _add(haystacks, f"in {haystack}", haystack, record, line, metric)
            _add(haystacks, AVERAGE, haystack, record, line, metric)
    return _open(kinds | haystacks)


def _kind(record: Record, line: Line) -> str:
    """What kind of fact the needle of a line is, by the number in its id; the first may be the user's own."""
    known = needles(10)
    number = line["id"].rpartition("-N")[2]
    if not number.isdecimal() or int(number) >= len(known):
        return "configured"
    if int(number) == 0 and record.config.get("eval", {}).get("needle") != known[0].needle:
        return "configured"
    return known[int(number)].kind


def _layers(records: Sequence[Record], metric: Metric) -> Cells:
    """A cell for every layer: the tokens that it keeps of a prompt, mean over its KV heads, and the mean layer."""
    columns: dict[str, Values] = {}
    for record in records:
        for line in record.covered:
            tokens, sample = layer_means(line), key(record, line)
            for place, value in enumerate(tokens):
                columns.setdefault(f"layer {place}", {}).setdefault(record.task, {})[sample] = value
            if tokens:
                columns.setdefault(AVERAGE, {}).setdefault(record.task, {})[sample] = fmean(tokens)
    whole = {AVERAGE: columns.pop(AVERAGE)} if columns else {}
    return _open(columns | whole)


def _longbench(records: Sequence[Record], metric: Metric, groups: Mapping[str, Sequence[str]]) -> Cells:
    """A cell for every task and category, or for every group of categories, and all 16; only official rows count.

    A sample without the metric, as an answer of one token has no agreement, is none of those to be had.
    """
    from evals.longbench.table import score
    from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS

    values: Values = {}
    counted: dict[str, int] = {}
    to_be_had = {task: TASKS[task].n for task in TASKS}
    for record in sorted(records, key=lambda record: list(TASKS).index(record.task)):
        lines: Sequence[Line] = record.covered
        check = score(record.task, lines).check
        measured = {key(record, line): line[metric.field] for line in lines if line.get(metric.field) is not None}
        if measured:
            values[record.task] = measured
            counted[record.task] = max(len(measured) - (check.mismatching if check else 0), 0)
            to_be_had[record.task] -= len(lines) - len(measured)
    wanted: dict[str, Sequence[str]] = {} if groups else {task: [task] for task in values}
    for name, categories in (groups or {category: [category] for category in CATEGORIES}).items():
        wanted[name] = [task for task in ENGLISH if TASKS[task].category in categories]
    wanted[AVERAGE_OF_16] = ENGLISH
    cells: Cells = {}
    for name, tasks in wanted.items():
        there = [task for task in tasks if task in values]
        if there:
            of, present = sum(to_be_had[task] for task in tasks), sum(counted[task] for task in there)
            cells[name] = Cell({task: values[task] for task in there}, of, present, tasks=len(tasks))
    return cells
