"""Compare the settings of a results tree: paired differences per sample with intervals, corrected p-values, groups."""

from collections.abc import Sequence
from itertools import groupby

from evals.results.means import USUAL, average, sampled, values_of
from evals.results.names import names
from evals.results.record import Record
from evals.results.shows import hook
from evals.tables.compare import Comparison, all_pairs, stated
from evals.tables.table import KNOWN, Key, Metric, Table


def tables_of(records: Sequence[Record], metric: str) -> list[Table]:
    """Return the tables of a metric that the evaluation of these records makes; an empty list if no line has the
    metric.

    For a field without a table, return its mean over all samples. Whether higher is better is then unknown.
    """
    found = [table for table in hook(records[0].kind, "tables")(records) if table.metric.field == metric]
    if found or metric in KNOWN:
        return found
    return sampled(records, USUAL, average, [Metric(metric, metric, 4, better=None)])


def comparisons(records: Sequence[Record], metric: str, within: float | None = None) -> list[Comparison]:
    """Compare all settings that have `metric` on the same samples, for each task and then over all tasks.

    `metric` is a numeric field of the sample lines, such as `score` or `kl`. A sample is left out for all settings if
    one setting lacks the sample, or has no number for it. Settings without a number for any sample are left out. Over
    all tasks, every task has the same weight, as in the average of a table. Settings with the same ids but other
    prompts or weights get a separate comparison; if there is only one such setting, its comparison has no pairs.
    `within`: the margin of equivalence; default: the metric's margin.
    """

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.protocol

    compared = []
    for (model, evaluation, protocol), group in groupby(sorted(records, key=place), key=place):
        of_evaluation = list(group)
        margin = stated(KNOWN.get(metric) or tables_of(of_evaluation, metric)[0].metric, within)
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
