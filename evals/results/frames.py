"""Results as pandas frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evals.results.means import key
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import NAMED
from evals.tables.methods import Name

LEFT_OUT = (*NAMED, "samples", "interval", "checksum")
"""Fields of a summary that are no column as they are, beside those that are mappings."""


def setting_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per setting that has a summary."""
    finished = [record for record in records if record.summary is not None]
    return _frame([_setting(record, name) for record, name in zip(finished, names(finished), strict=True)])


def sample_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per finished sample."""
    rows: list[dict[str, Any]] = []
    for record, name in zip(records, names(records), strict=True):
        covered = {line["id"] for line in record.covered} if record.summary is not None else set()
        for line in record.samples.values():
            fields = {key: value for key, value in line.items() if key not in ("of", "timing", "checksum")}
            of_sample = {"covered": line["id"] in covered, "sample": " ".join(key(record, line))}
            rows.append({**_names(record, name), **fields, **of_sample})
    return _frame(rows)


def _setting(record: Record, name: Name) -> dict[str, Any]:
    summary = record.summary or {}
    low, high = summary.get("interval") or (None, None)
    fidelity = {measure: values["mean"] for measure, values in summary.get("fidelity", {}).items()}
    scalars = {key: value for key, value in summary.items() if key not in LEFT_OUT and not isinstance(value, dict)}
    return {**_names(record, name), **scalars, "low": low, "high": high, **summary.get("scores", {}), **fidelity}


def _names(record: Record, name: Name) -> dict[str, Any]:
    return {**{field: getattr(record, field) for field in NAMED}, "setting": str(name), "folder": record.name}


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Budgets as whole numbers, missing for the full cache; the naming columns also where there are no rows."""
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*NAMED, "setting", "folder"])
    return frame.astype({"budget": "Int64"})
