"""Results as pandas frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evals.results.record import NAMED, Record

LEFT_OUT = ("samples", "interval", "checksum")
"""Fields of a summary that are no column, beside those that are mappings."""


def setting_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per setting that has a summary."""
    return _frame([_setting(record, record.summary) for record in records if record.summary is not None])


def sample_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per finished sample."""
    rows: list[dict[str, Any]] = []
    for record in records:
        covered = {line["id"] for line in record.covered} if record.summary is not None else set()
        for line in record.samples.values():
            fields = {key: value for key, value in line.items() if key not in ("timing", "checksum")}
            rows.append({**_names(record), **fields, "covered": line["id"] in covered})
    return _frame(rows)


def _setting(record: Record, summary: Mapping[str, Any]) -> dict[str, Any]:
    low, high = summary.get("interval") or (None, None)
    fidelity = {name: values["mean"] for name, values in summary.get("fidelity", {}).items()}
    scalars = {key: value for key, value in summary.items() if key not in LEFT_OUT and not isinstance(value, dict)}
    return {**_names(record), **scalars, "low": low, "high": high, **summary.get("scores", {}), **fidelity}


def _names(record: Record) -> dict[str, Any]:
    return {**{field: getattr(record, field) for field in NAMED}, "folder": record.name}


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Budgets as whole numbers, missing for the full cache; the naming columns also where there are no rows."""
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*NAMED, "folder"])
    return frame.astype({"budget": "Int64"})
