"""Write tables as CSV that spreadsheets read as text and numbers, never as formulas."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.console import visible
from evals.tables.compare import Verdict
from evals.tables.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame

FORMULAS = ("=", "@", "+", "-", "\t", "\r", "\n", "＝", "＠", "＋", "－")
"""Characters that start a formula, or that spreadsheets skip before one."""


def means(tables: Sequence[Table]) -> "DataFrame":
    """Return one row for every cell of `tables`, including the published number.

    `low` and `high` are the bounds of the 95 % interval; `of` is the number of samples that exist. The column `when` is
    left out if all rows evict after the prompt.
    """
    timed = any(row.when != "prompt" for table in tables for row in table.rows)
    rows = []
    for table in tables:
        for row in table.rows:
            for column, cell in row.cells.items():
                low, high = _rounded(cell.interval, cell.digits)
                place = {"model": table.model, "eval": table.eval, "protocol": row.protocol, "method": row.name.method}
                named = {"variant": row.name.variant, "metric": table.metric.field, "column": column}
                measured = {"mean": cell.mean, "low": low, "high": high, "n": cell.n, "of": cell.of}
                when = {"when": row.when} if timed else {}
                compared = {
                    "partial": cell.partial,
                    "published": cell.published,
                    "source": cell.source,
                    "difference": cell.difference,
                    "not_comparable": "nothing published" if cell.published is None else cell.apart,
                }
                rows.append({**place, "budget": row.budget, **when, **named, **measured, **compared})
    return _frame(rows)


def comparisons(verdicts: Sequence[Verdict]) -> "DataFrame":
    """Return one row for every paired comparison, `second` − `first`."""

    rows = []
    for verdict in verdicts:
        low, high = _rounded(verdict.interval, verdict.digits)
        fields = ("model", "eval", "budget", "first", "second", "metric", "column", "mean", "p", "n", "needed")
        values = {field: getattr(verdict, field) for field in fields}
        rows.append({**values, "low": low, "high": high, "partial": verdict.partial, "verdict": verdict.words})
    return _frame(rows).astype({"needed": "Int64"}).round({"p": 4})


def _frame(rows: list[dict[str, Any]]) -> "DataFrame":
    import pandas as pd

    from evals.results.frames import budget_column

    frame = pd.DataFrame(rows)
    return frame.assign(budget=budget_column(frame["budget"]))


def _rounded(interval: tuple[float, float] | None, digits: int) -> tuple[float | None, float | None]:
    return (round(interval[0], digits), round(interval[1], digits)) if interval else (None, None)


def csv_text(frame: "DataFrame") -> str:
    """Return `frame` as CSV without its index. Texts that would start a formula get an apostrophe in front."""
    shown = frame.rename(columns=_inert)
    for name in shown.select_dtypes(exclude=["number", "bool"]):
        shown[name] = np.array([*map(_inert, shown[name]), None], dtype=object)[:-1]
    return shown.to_csv(index=False)


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # `visible` also replaces carriage returns, which would end the line.
    return ("'" if value.startswith(FORMULAS) else "") + visible(value)
