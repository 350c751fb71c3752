"""Which settings of a results tree differ: paired per-sample differences with intervals, corrected p-values, groups."""

from collections.abc import Sequence
from itertools import groupby

from evals.results.means import values_of
from evals.results.names import names
from evals.results.record import Record
from evals.tables.compare import Comparison, all_pairs, stated
from evals.tables.table import KNOWN, Key, Metric


def comparisons(records: Sequence[Record], metric: str, within: float | None = None) -> list[Comparison]:
    """One for each task with two settings or more that have `metric` on the same samples; then over all tasks.

    `metric` is a numeric field of the sample lines, such as `score` or `kl`. Samples that a setting lacks, or that have
    no number there, are left out for all; settings without any are left out. Over all tasks, every task counts the
    same, as in the average of a table. Settings of other prompts or weights, under the same ids, have a comparison of
    their own; a single such setting has one without pairs. `within`: the margin of equivalence, in place of the
    metric's own.
    """
    margin = stated(KNOWN.get(metric, Metric(metric)), within)

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.protocol

    compared = []
    for (model, evaluation, protocol), group in groupby(sorted(records, key=place), key=place):
        of_evaluation = list(group)
        by_task: dict[str, dict[str, dict[Key, float]]] = {}
        for name, record in zip(names(of_evaluation), of_evaluation, strict=True):
            if values := values_of(record, metric):
                by_task.setdefault(record.task, {})[str(name)] = values
        title = f"{model} · {evaluation} · {protocol}"
        for task, settings in by_task.items():
            compared += all_pairs(f"{title} · {task}", {task: settings}, margin)
        if len(by_task) > 1:
            compared += all_pairs(f"{title} · all {len(by_task)} tasks", by_task, margin)
    return compared
