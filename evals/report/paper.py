"""Add the paper's numbers to measured numbers, and say why they cannot be compared."""

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


def place_of(row: Published) -> tuple[str, str, Budget | None, str]:
    """Return model, method, budget and column."""
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
            cells[column] = cell
            for model, apart in ((ours.model.lower(), _apart(row, cell)), ("", UNNAMED)):
                if theirs := numbers.get((model, row.name.method, row.budget, column)):
                    cells[column] = replace(cell, published=theirs.value, apart=apart, source=theirs.source)
                    break
        rows.append(replace(row, cells=cells))
    return replace(ours, rows=rows)


def others(item: str, ours: Sequence[Table]) -> list[Published]:
    """Return the published numbers of the item that the tables do not show."""
    shown = {
        ("" if cell.apart == UNNAMED else table.model.lower(), row.name.method, row.budget, column)
        for table in ours
        for row in table.rows
        for column, cell in row.cells.items()
        if cell.published is not None
    }
    return [row for row in published(item) if row.unit not in UNITS or place_of(row) not in shown]


def _apart(row: Row, cell: Cell) -> str:
    """Return why a published number cannot be compared with the cell; "" if it can."""
    if row.protocol != PROTOCOL:
        return f"protocol={row.protocol}"
    if row.when != "prompt":
        return f"eviction.when={row.when}"
    return "partial" if cell.partial else row.name.variant or row.apart
