"""Tables of custom tasks: a column for every task and every metric, and their average."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.results.means import USUAL, Asked, Cells, average, by_line, by_task, sampled
from evals.results.record import Record
from evals.results.schema import Line
from evals.results.shows import own_fields
from evals.tables.table import AVERAGE, Metric, Table


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    several = len({record.task for record in records}) > 1

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        return (by_task(of_row, metric) if several else {}) | by_line(of_row, metric, _metric) | average(of_row, metric)

    return sampled(records, asked, cells_of, failed=lambda line, column: column in (AVERAGE, _metric(line)))


def _metric(line: Line) -> str | None:
    return metric if isinstance(metric := line.get("metric"), str) else None


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    return {name: value for name, value in own_fields(line).items() if name in ("answers", "metric")}
