"""Convert results to pandas frames."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from compresskv.budget import Budget, written
from evals.results.means import key
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import NAMED
from evals.tables.methods import Name

LEFT_OUT = (*NAMED, "samples", "interval", "checksum")
"""Fields of a summary, in addition to mappings, that are not copied unchanged to a column."""


def setting_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a frame with one row per setting that has a summary."""
    finished = [record for record in records if record.summary is not None]
    rows: list[dict[str, Any]] = []
    for record, name in zip(finished, names(finished), strict=True):
        summary = record.summary or {}
        scalars = {key: value for key, value in summary.items() if key not in LEFT_OUT and not isinstance(value, dict)}
        low, high = summary.get("interval") or (None, None)
        fidelity = {measure: values["mean"] for measure, values in summary.get("fidelity", {}).items()}
        of_summary = {**scalars, "low": low, "high": high, **summary.get("scores", {}), **fidelity}
        rows.append({**_names(record, name), **of_summary})
    return _frame(rows)


def sample_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a frame with one row per finished sample."""
    rows: list[dict[str, Any]] = []
    for record, name in zip(records, names(records), strict=True):
        covered = {line["id"] for line in record.covered} if record.summary is not None else set()
        for line in record.samples.values():
            fields = {key: value for key, value in line.items() if key not in ("of", "timing", "checksum")}
            of_sample = {"covered": line["id"] in covered, "sample": " ".join(key(record, line))}
            rows.append({**_names(record, name), **fields, **of_sample})
    return _frame(rows)


def _names(record: Record, name: Name) -> dict[str, Any]:
    fields = {field: getattr(record, field) for field in NAMED}
    return {**fields, "when": record.when, "setting": str(name), "folder": record.name}


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Build a frame from `rows`. Without rows, it has the naming columns."""
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*NAMED, "when", "setting", "folder"])
    return frame.assign(budget=budget_column(frame["budget"]))


def budget_column(budgets: Iterable[Budget | None]) -> pd.Series:
    """Return budgets as integers, or as strings if some are shares; the full cache is a missing value."""
    values = [written(budget) for budget in budgets]
    if any(isinstance(value, str) for value in values):
        return pd.Series([None if value is None else str(value) for value in values], dtype=object)
    return pd.Series(values, dtype="Int64")
