"""The paper's numbers beside ours, and why they can or cannot be compared."""

from collections.abc import Sequence
from dataclasses import replace

from evals.report.cells import Cell, Grid, Row
from evals.report.labels import PUBLISHED
from evals.results.published import Published, published

PROTOCOL = "released"
"""The paper's numbers were made with its authors' code."""

MAX_LENGTH = {"llama-3.1-8b-instruct": 127500, "mistral-7b-instruct-v0.3": 31500}
"""Tokens of a LongBench prompt and its answer in the authors' code."""

UNITS = ("score", "tokens", "points")
"""Units of published numbers that may be means as ours; others, such as shares, are only listed."""


UNNAMED = "its model is not named"


def beside(item: str, ours: Grid) -> Grid:
    """The same grid, each cell with the published number of its model, method, budget and column, if there is one."""
    if ours.metric.field not in ("score", "kept"):
        return ours
    numbers = {
        (row.model.lower(), method_of(row), row.budget, row.task_or_metric): row
        for row in published(item)
        if row.unit in UNITS
    }
    rows = []
    for row in ours.rows:
        cells = {}
        for column, cell in row.cells.items():
            apart = _apart(ours, row, cell)
            theirs = numbers.get((ours.model.lower(), row.method, row.budget, column))
            if theirs is None and (theirs := numbers.get(("", row.method, row.budget, column))):
                apart = UNNAMED
            if theirs:
                cell = replace(cell, published=theirs.value, apart=apart, source=theirs.source)
            cells[column] = cell
        rows.append(replace(row, cells=cells))
    return replace(ours, rows=rows)


def method_of(row: Published) -> str:
    """The method of a published number under our label."""
    return PUBLISHED.get(row.method, row.method)


def others(item: str, ours: Sequence[Grid]) -> list[Published]:
    """Published numbers of the item that stand beside none of ours."""
    shown = set()
    for of_model in ours:
        for row in of_model.rows:
            for column, cell in row.cells.items():
                if cell.published is not None:
                    models = ("",) if cell.apart == UNNAMED else (of_model.model.lower(),)
                    shown |= {(model, row.method, row.budget, column) for model in models}
    return [
        row
        for row in published(item)
        if row.unit not in UNITS or (row.model.lower(), method_of(row), row.budget, row.task_or_metric) not in shown
    ]


def _apart(ours: Grid, row: Row, cell: Cell) -> str:
    """Why a number of the paper's model is not comparable with ours; "" if it is."""
    if row.protocol != PROTOCOL:
        return f"protocol={row.protocol}"
    if cell.partial:
        return "partial"
    if row.variant:
        return row.variant
    if ours.kind == "longbench":
        lengths = {record.config.get("eval", {}).get("max_length") for record in row.records}
        if lengths != {MAX_LENGTH.get(ours.model.lower())}:
            return "eval.max_length is not the paper's"
    return ""
