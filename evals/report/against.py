"""Compare methods with one chosen method, or with the full cache: `python -m evals results compare` and `certify`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compresskv.errors import UserError
from evals.results.compare import tables_of
from evals.results.means import groups_of
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import is_number
from evals.results.shows import sound
from evals.tables.certify import Certificate, certificates, unmeasured
from evals.tables.compare import Question, Verdict, subject_of, unpaired, verdicts
from evals.tables.equivalence import checked_margin
from evals.tables.methods import Name, named
from evals.tables.table import KNOWN, Row
from evals.tables.text import title_of


def question(method: str, margins: Mapping[str, float] | None = None) -> Question:
    """Return the comparison of every method with `method`, a name as used in results."""
    return Question(subject=named(method), margins=margins or {})


def against(
    records: Sequence[Record], metric: str, method: str, margin: float | None = None
) -> list[tuple[str, list[Verdict]]]:
    """Compare `method` with the other methods, and return titled groups of comparisons.

    There is one group for each task and one for all tasks, per model and evaluation. The report page shows the groups
    of all tasks. `margin`: the margin of equivalence; default: the metric's margin. Raises `UserError` if nothing is
    compared.
    """
    known = dict.fromkeys(record.method for record in records)
    if method not in known:
        raise UserError("--against", f"choose one of {', '.join(known)}, or all", value=method, why="no results here")
    asked = question(method, {} if margin is None else {metric: margin})
    found = list(_families([sound(record)[0] for record in records if record.summary], metric, asked))
    if not found:
        raise UserError(
            "--metric",
            "choose a numeric field of samples.jsonl, such as score, and a method that was run with others",
            value=metric,
            why=f"no other method has this field on the same samples at the same budget as {method}",
        )
    return found


def certified(
    records: Sequence[Record], metric: str, loss: float, confidence: float = 0.95
) -> tuple[list[Certificate], list[str]]:
    """Return a certificate for every method that has the metric on the same samples as the full cache.

    Also return sentences that name the settings that share no sample with the full cache, and are therefore left out.
    `loss`: in the metric's unit, lost score or added KL. Raises `UserError` for values out of range, and if nothing can
    be compared with the full cache.
    """
    if metric not in KNOWN:
        raise UserError(
            "--metric",
            f"choose one of {', '.join(KNOWN)}",
            value=metric,
            why="the largest possible loss of this field is not known",
        )
    checked_margin("--loss", loss)
    if not 0.5 < confidence < 1:
        raise UserError("--confidence", "give a number between 0.5 and 1, such as 0.95", value=confidence)
    found: list[Certificate] = []
    notes: list[str] = []
    for group in groups_of([sound(record)[0] for record in records if record.summary]):
        variants = dict(zip((record.path for record in group), names(group, over_budgets=True), strict=True))

        def method_of(row: Row, variants: Mapping[Path, Name] = variants) -> str:
            variant = variants[row.records[0].path].variant if row.records else row.name.variant
            return replace(row.name, variant=variant).label

        for table in tables_of(group, metric):
            found += certificates(table, loss, confidence, method_of)
            notes += [*unpaired(table), *unmeasured(table)]
    if not found:
        raise UserError(
            "--metric",
            "run method=full and other methods on the same samples; for kl, with fidelity=true",
            value=metric,
            why="no setting has this field on the same samples as the full cache",
        )
    return found, notes


def _families(records: Sequence[Record], metric: str, asked: Question) -> Iterator[tuple[str, list[Verdict]]]:
    for group in groups_of(records):
        with_metric = [record for record in group if any(is_number(line.get(metric)) for line in record.covered)]
        for table in tables_of(with_metric, metric) if with_metric else ():
            if subject_of(asked, table) != asked.subject:
                continue
            known = asked if table.metric.better else replace(asked, finding="higher for {better}")
            tasks = [column for column in table.columns if column in {record.task for record in group}]
            for column in [*(tasks if len(tasks) > 1 else []), table.overall]:
                if compared := verdicts(known, replace(table, compared=[column])):
                    yield f"{table.model} · {title_of(table.eval)} · {column}", compared
