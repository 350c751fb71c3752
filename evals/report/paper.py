"""Add the paper's numbers to measured ones, and say why they cannot be compared."""

from collections.abc import Sequence
from dataclasses import replace

from compresskv.budget import Budget
from evals.results.published import Published, published
from evals.tables.table import Cell, Row, Table

PROTOCOL = "released"
"""Protocol of the paper's numbers, which were measured with its authors' code."""

UNITS = ("score", "tokens", "points")
"""Units of published numbers that tables show. Numbers in other units, such as shares, are only listed."""

METHODS = {"SnapKV + semantic heads + layer budgets": "CompressKV"}
"""Names of methods in results/paper that differ from the names in tables."""

UNNAMED = "its model is not named"

Place = tuple[str, str, Budget | None, str]
"""Model, method, budget and column."""


def place_of(row: Published) -> Place:
    return row.model.lower(), METHODS.get(row.method, row.method), row.budget, row.task_or_metric


def beside(item: str, ours: Table) -> Table:
    """Return the table with the published number of the same model, method, budget and column added to each cell."""
    if ours.metric.field not in ("score", "kept"):
        return ours
    numbers = {place_of(row): row for row in published(item) if row.unit in UNITS}
    rows = []
    for row in ours.rows:
        cells = {}
        for column, cell in row.cells.items():
            apart, place = _apart(row, cell), (row.name.method, row.budget, column)
            theirs = numbers.get((ours.model.lower(), *place))
            if theirs is None and (theirs := numbers.get(("", *place))):
                apart = UNNAMED
            cells[column] = replace(cell, published=theirs.value, apart=apart, source=theirs.source) if theirs else cell
        rows.append(replace(row, cells=cells))
    return replace(ours, rows=rows)


def others(item: str, ours: Sequence[Table]) -> list[Published]:
    """Return the published numbers of the item that the tables do not show."""
    shown: set[Place] = set()
    for table in ours:
        for row in table.rows:
            for column, cell in row.cells.items():
                if cell.published is not None:
                    model = "" if cell.apart == UNNAMED else table.model.lower()
                    shown.add((model, row.name.method, row.budget, column))
    return [row for row in published(item) if row.unit not in UNITS or place_of(row) not in shown]


def _apart(row: Row, cell: Cell) -> str:
    """Return why a published number cannot be compared with the cell; "" if it can."""
    if row.protocol != PROTOCOL:
        return f"protocol={row.protocol}"
    if row.when != "prompt":
        return f"eviction.when={row.when}"
    return "partial" if cell.partial else row.name.variant or row.apart
