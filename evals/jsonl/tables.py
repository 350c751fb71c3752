"""Your own tasks: a column for every task, every metric, and their average."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.results.means import USUAL, Asked, Cells, Values, add, average, by_task, cells, sampled
from evals.results.record import Record
from evals.results.schema import Line
from evals.results.shows import own_fields
from evals.tables.table import Metric, Table


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    several = len({record.task for record in records}) > 1

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        return (by_task(of_row, metric) if several else {}) | _metrics(of_row, metric) | average(of_row, metric)

    return sampled(records, asked, cells_of)


def _metrics(records: Sequence[Record], metric: Metric) -> Cells:
    columns: dict[str, Values] = {}
    for record in records:
        for line in record.covered:
            if isinstance(line.get("metric"), str):
                add(columns, line["metric"], record.task, record, line, metric)
    return cells(columns)


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    return {name: value for name, value in own_fields(line).items() if name in ("answers", "metric")}
