"""What a run shows at its end: tables of all settings, and the figures of their evaluations."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from compresskv.errors import UserError
from evals.compose import plug_in_class
from evals.console import plain, screen
from evals.job import SampledEvaluation, Shown
from evals.report.sound import sound
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import FIDELITY, Line
from evals.results.statistics import interval


def show(records: Sequence[Record]) -> list[Path]:
    """Print the tables of every model and evaluation, as the evaluation has them; returns the paths of its figures."""
    console = screen()
    figures: list[Path] = []

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.kind

    shown_records = sorted((sound(record)[0] for record in records), key=place)
    for (model, evaluation, _), group in groupby(shown_records, key=place):
        of_evaluation = list(group)
        by_setting: dict[str, list[Record]] = {}
        for name, record in zip(names(of_evaluation), of_evaluation, strict=True):
            by_setting.setdefault(name, []).append(record)
        shown = _shown(f"{model} · {evaluation}", by_setting, _figure(of_evaluation))
        for table in shown.tables:
            console.print(table)
        try:
            figures += shown.draw()
        except UserError as error:  # such as in a tree that is read-only
            console.print(f"no figure: {error}", soft_wrap=True, markup=False)
        if any((record.summary or {}).get("fidelity") for record in of_evaluation):
            console.print(fidelity_table(f"{model} · {evaluation} · fidelity to the full cache", by_setting))
    for path in figures:
        console.print(f"figure: {path}", soft_wrap=True, markup=False)
    return figures


def _shown(title: str, by_setting: Mapping[str, Sequence[Record]], figure: Path) -> Shown:
    """What the evaluation itself makes of its records; a plain table where it cannot be had, as in old results."""
    first = next(iter(by_setting.values()))[0]
    try:
        evaluation = plug_in_class("eval._target_", SampledEvaluation, first.config.get("eval", {}).get("_target_"))
    except UserError:
        return Shown([score_table(title, by_setting)])
    return evaluation.show(title, by_setting, figure)


def _figure(records: Sequence[Record]) -> Path:
    """Where the figure of these records goes, without suffix: another place for other settings or samples."""
    covered = sorted(f"{record.path} {' '.join(line['id'] for line in record.covered)}" for record in records)
    digest = hashlib.sha256("\n".join(covered).encode()).hexdigest()[:8]
    return records[0].runs.parent / "figures" / f"{records[0].eval}-{records[0].model}-{digest}"


def score_table(
    title: str, records: Mapping[str, Sequence[Record]], part_of: Callable[[Line], str] | None = None
) -> Table:
    """A row per setting and task: score with its interval, what was really kept.

    `part_of` names the part of the samples that a line belongs to; each has a column with its mean score.
    """
    tasks = {record.task for of_setting in records.values() for record in of_setting}
    parts = {name: _parts(of_setting, part_of) for name, of_setting in records.items()} if part_of else {}
    every: dict[str, None] = {}
    for means in parts.values():
        every |= dict.fromkeys(means)
    columns = sorted(every, key=lambda part: (len(part), part))  # numbers by their size
    table = Table(title=plain(title))
    table.add_column("setting", no_wrap=True)
    if len(tasks) > 1:
        table.add_column("task", no_wrap=True)
    for column in ("score", "95 % interval", *columns, "n", "kept/layer/head", "cache MB"):
        table.add_column(plain(column), justify="right")
    all_records = [record for of_setting in records.values() for record in of_setting]
    hybrid = any("total_cache_bytes" in (record.summary or {}) for record in all_records)
    if hybrid:
        table.add_column("with sliding layers", justify="right")
    for name, of_setting in records.items():
        for record in of_setting:
            summary = record.summary
            if summary is None:
                continue
            interval = summary.get("interval")
            table.add_row(
                plain(name),
                *([plain(record.task)] if len(tasks) > 1 else []),
                f"{summary['score']:.1f}",
                f"{interval[0]:.1f} – {interval[1]:.1f}" if interval else "–",
                *(f"{parts[name][part]:.1f}" if part in parts[name] else "" for part in columns),
                _of_all(summary),
                f"{summary['realised_budget']:.1f}" if "realised_budget" in summary else "–",
                _megabytes(summary.get("cache_bytes")),
                *([_megabytes(summary.get("total_cache_bytes"))] if hybrid else []),
            )
    return table


def _of_all(summary: Mapping[str, Any]) -> str:
    """How many samples the means are over, and of how many, where some failed."""
    n, failed = len(summary["samples"]), summary.get("failed", 0)
    return f"{n} of {n + failed}" if failed else str(n)


def fidelity_table(title: str, records: Mapping[str, Sequence[Record]]) -> Table:
    """A row per setting: mean and 95 % interval of each field in `FIDELITY`, over the samples of all its tasks."""
    table = Table(title=plain(title), caption="kl and reference_nll in nats per token, agreement from 0 to 1")
    table.add_column("setting", no_wrap=True)
    for field in FIDELITY:
        for column in (field, "95 % interval", "n"):
            table.add_column(column, justify="right")
    for name, of_setting in records.items():
        cells = []
        for field in FIDELITY:
            values = _values(of_setting, field)
            bounds = interval(values) if values else None
            cells.append(f"{fmean(values):.3f}" if values else "–")
            cells.append(f"{bounds[0]:.3f} – {bounds[1]:.3f}" if bounds else "–")
            cells.append(str(len(values)))
        table.add_row(plain(name), *cells)
    return table


def _values(records: Sequence[Record], field: str) -> list[float]:
    values = []
    for record in records:
        values += [line[field] for line in record.covered if line.get(field) is not None]
    return values


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}"


def _parts(records: Sequence[Record], part_of: Callable[[Line], str]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for record in records:
        for line in record.covered:
            scores.setdefault(part_of(line), []).append(line["score"])
    return {part: fmean(values) for part, values in scores.items()}
