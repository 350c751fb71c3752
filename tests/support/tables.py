"""Tables of results in memory, from the values of their samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.tables.methods import Name
from evals.tables.table import SCORE, Cell, Metric, Row, Table


def cell(values: Sequence[float], of: int | None = None, **fields: Any) -> Cell:
    """Return the cell of one task with these values, which are all that there are or part of `of`."""
    samples = {(str(place), ""): float(value) for place, value in enumerate(values)}
    return Cell({"task": samples}, of or len(samples), len(samples), **fields)


def table(values: Mapping[str | Name, Sequence[float]], metric: Metric = SCORE) -> Table:
    """Return a table of averages with a row for each name; a plain one is a method at the budget 64."""
    names = {Name(name, 64) if isinstance(name, str) else name: of_row for name, of_row in values.items()}
    rows = [Row(name, {"average": cell(of_row)}) for name, of_row in names.items()]
    return Table("tiny", "niah", ["average"], rows, metric)
