"""One method compared with every other of its budget: what `python -m evals.results compare --against` shows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from compresskv.errors import UserError
from evals.kinds import TITLES
from evals.report.cells import SCORE, Metric
from evals.report.grids import FIDELITY, by_task, grid_of, groups_of
from evals.report.items import ALL, Item
from evals.report.labels import named
from evals.report.sound import sound
from evals.report.verdicts import Verdict, subject_of, verdicts
from evals.results.record import Record

KNOWN = {metric.field: metric for metric in (SCORE, *FIDELITY)}


def item_of(method: str) -> Item:
    """The item that compares everything with a method, as results name it."""
    return replace(ALL, subject=named(method))


def against(records: Sequence[Record], metric: str, method: str) -> list[tuple[str, list[Verdict]]]:
    """The comparisons of `method`, with a title for each family: each task of a model and evaluation, and all of them.

    The report page has the same: those over everything. Raises `UserError` where there are none.
    """
    known = dict.fromkeys(record.method for record in records)
    if method not in known:
        raise UserError("--against", f"choose one of {', '.join(known)}, or all", value=method, why="no results here")
    found = list(_families([sound(record)[0] for record in records if record.summary], metric, item_of(method)))
    if not found:
        raise UserError(
            "--metric",
            "choose a numeric field of samples.jsonl, such as score, and a method that was run with others",
            value=metric,
            why=f"no other method has it on the same samples at the same budget as {method}",
        )
    return found


def _families(records: Sequence[Record], metric: str, item: Item) -> Iterator[tuple[str, list[Verdict]]]:
    # Of other fields nobody says which values are better.
    measured = KNOWN.get(metric, Metric(metric, metric, 4))
    item = item if metric in KNOWN else replace(item, finding="higher for {better}")
    for group in groups_of(records):
        with_metric = [record for record in group if any(_number(line.get(metric)) for line in record.covered)]
        if not with_metric:
            continue
        grid = by_task(grid_of(item, with_metric, measured))
        if subject_of(item, grid) != item.subject:
            continue
        tasks = [column for column in grid.columns if column in {record.task for record in group}]
        for column in [*(tasks if len(tasks) > 1 else []), grid.overall]:
            if compared := verdicts(item, replace(grid, compared=[column])):
                yield f"{grid.model} · {TITLES.get(grid.eval, grid.eval)} · {column}", compared


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
