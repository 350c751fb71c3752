"""Compare one method with every other method at the same budget: `python -m evals results compare --against`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from compresskv.errors import UserError
from evals.results.means import USUAL, average, groups_of, is_number, sampled
from evals.results.record import Record
from evals.results.shows import hook, sound
from evals.tables.compare import Question, Verdict, subject_of, verdicts
from evals.tables.methods import named
from evals.tables.table import FIDELITY, SCORE, Metric, Table
from evals.tables.text import title_of

KNOWN = {metric.field: metric for metric in (SCORE, *FIDELITY)}


def question(method: str) -> Question:
    """Return the question that compares every method with `method`, a name as used in results."""
    return Question(subject=named(method))


def against(records: Sequence[Record], metric: str, method: str) -> list[tuple[str, list[Verdict]]]:
    """Compare `method` with the others and return titled groups of comparisons.

    There is one group for each task and one for all tasks, per model and evaluation. The report page shows the groups
    of all tasks. Raises `UserError` if there are no comparisons.
    """
    known = dict.fromkeys(record.method for record in records)
    if method not in known:
        raise UserError("--against", f"choose one of {', '.join(known)}, or all", value=method, why="no results here")
    found = list(_families([sound(record)[0] for record in records if record.summary], metric, question(method)))
    if not found:
        raise UserError(
            "--metric",
            "choose a numeric field of samples.jsonl, such as score, and a method that was run with others",
            value=metric,
            why=f"no other method has it on the same samples at the same budget as {method}",
        )
    return found


def _families(records: Sequence[Record], metric: str, asked: Question) -> Iterator[tuple[str, list[Verdict]]]:
    # For other fields, it is unknown whether higher or lower is better.
    asked = asked if metric in KNOWN else replace(asked, finding="higher for {better}")
    for group in groups_of(records):
        with_metric = [record for record in group if any(is_number(line.get(metric)) for line in record.covered)]
        for table in _tables(with_metric, metric) if with_metric else ():
            if subject_of(asked, table) != asked.subject:
                continue
            tasks = [column for column in table.columns if column in {record.task for record in group}]
            for column in [*(tasks if len(tasks) > 1 else []), table.overall]:
                if compared := verdicts(asked, replace(table, compared=[column])):
                    yield f"{table.model} · {title_of(table.eval)} · {column}", compared


def _tables(records: Sequence[Record], metric: str) -> list[Table]:
    """Return the evaluation's table of the metric. For any other field, return a table of its mean over all samples."""
    if metric in KNOWN:
        return [table for table in hook(records[0].kind, "tables")(records) if table.metric.field == metric]
    return sampled(records, USUAL, average, [Metric(metric, metric, 4)])
