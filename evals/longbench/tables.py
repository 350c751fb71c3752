"""LongBench tables: columns for tasks, categories and the average of 16. Only official rows make a cell complete."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import TypedDict

from evals.longbench.aggregate import AVERAGE_OF_16, BY_CATEGORY, averages
from evals.longbench.official import RowCheck, check_flags, check_rows
from evals.longbench.tasks import CATEGORIES, TASKS
from evals.results.means import USUAL, Asked, Cells, key, sampled
from evals.results.record import Record
from evals.results.schema import Count, Line, exactly
from evals.results.shows import own_fields
from evals.tables.table import Cell, Key, Metric, Section, Table

ABILITIES = {
    "QA": ("single-doc QA", "multi-doc QA"),
    "summaries": ("summarization",),
    "few-shot": ("few-shot",),
    "code": ("code",),
}
"""Columns of the view `abilities`, which replace the task columns, and the categories that each covers."""

MAX_LENGTH = {"llama-3.1-8b-instruct": 127500, "mistral-7b-instruct-v0.3": 31500}
"""Maximum tokens of prompt and answer in the authors' code, by model."""


@exactly
class FIELDS(TypedDict, total=False):
    length: Count
    answers: list[str]


SECTION = Section(
    "longbench",
    "LongBench",
    note="Averages have a 95 % interval if every task has at least two samples. A published number is in the cell of "
    "the same model, method, budget and column; if protocol, prompts or samples differ, the cell has the reason.",
    published="table1_longbench",
)


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Return tables with columns by task and category, or by groups of categories in the view `abilities`."""
    records = [record for record in records if record.task in TASKS]
    if not records:
        return []
    groups = ABILITIES if asked.view == "abilities" else BY_CATEGORY
    ordered = [*TASKS, *groups]

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        return _cells(sorted(of_row, key=lambda record: ordered.index(record.task)), metric, groups)

    shown = sampled(
        records,
        asked,
        cells_of,
        order=ordered.index,
        average=AVERAGE_OF_16,
        heads={name: task.head for name, task in TASKS.items()},
        spans={} if groups is ABILITIES else {name: task.category for name, task in TASKS.items()},
        sums=() if groups is ABILITIES else CATEGORIES,
        counted="official rows",
    )
    return [replace(table, rows=[replace(row, apart=_apart(row.records)) for row in table.rows]) for table in shown]


def _cells(records: Sequence[Record], metric: Metric, groups: Mapping[str, Sequence[str]]) -> Cells:
    """Return the cells of tasks and averages. Samples without the metric, undefined for short answers, do not count."""
    values: dict[str, dict[Key, float]] = {}
    counted: dict[str, int] = {}
    official = {task: TASKS[task].n for task in TASKS}
    for record in records:
        lines: Sequence[Line] = record.covered
        measured = {
            key(record, line, metric.field): line[metric.field] for line in lines if line.get(metric.field) is not None
        }
        if measured:
            values[record.task] = measured
            counted[record.task] = max(len(measured) - row_check(record.task, lines).mismatching, 0)
            official[record.task] -= len(lines) - len(measured)
    of_tasks = {task: Cell({task: values[task]}, official[task], counted[task]) for task in values}
    return (of_tasks if groups is BY_CATEGORY else {}) | averages(values, counted, official, groups)


def row_check(task: str, lines: Sequence[Line]) -> RowCheck:
    """Compare a task's sample lines with the official rows."""
    return check_flags(task, [_official(task, line) for line in lines])


def _official(task: str, line: Line) -> bool:
    """Return whether the row of a line is official. Lines of older versions do not say so, but may have its answers."""
    if "official" in line:
        return line["official"]
    known = task in TASKS and line["id"].isdecimal() and isinstance(line.get("length"), int) and "answers" in line
    return known and check_rows(task, [(int(line["id"]), line["answers"], line["length"])]).matching == 1


def _apart(records: Sequence[Record]) -> str:
    """Return why a row cannot be compared with the paper's row; "" if no difference is known."""
    lengths = {record.config.get("eval", {}).get("max_length") for record in records}
    return "" if lengths == {MAX_LENGTH.get(records[0].model.lower())} else "eval.max_length differs from the paper"


def reduced(task: str, line: Line) -> Line:
    """Reduce a line to its length, its official score and whether its row is official."""
    fields: Line = {name: value for name, value in line.items() if name in ("length", "score_official")}
    return {**fields, "official": _official(task, line)}


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    fields = own_fields(line) | {"official": line.get("official")}
    return {name: value for name, value in fields.items() if name in ("answers", "length", "official")}
