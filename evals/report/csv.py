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

    `low`, `high`: the 95 % interval; `of`: number of existing samples; `when` is left out if all rows evict after the
    prompt.
    """
    rows = [
        {
            **{"model": table.model, "eval": table.eval, "protocol": row.protocol, "method": row.name.method},
            **{"budget": row.budget, "when": row.when, "variant": row.name.variant},
            **{
                "metric": table.metric.field,
                "column": column,
                "mean": cell.mean,
                **_bounds(cell.interval, cell.digits),
            },
            **{"n": cell.n, "of": cell.of, "partial": cell.partial, "published": cell.published},
            **{"source": cell.source, "difference": cell.difference},
            "not_comparable": "nothing published" if cell.published is None else cell.apart,
        }
        for table in tables
        for row in table.rows
        for column in table.columns
        if (cell := row.cells.get(column))
    ]
    frame = _frame(rows)
    return frame.drop(columns="when") if (frame["when"] == "prompt").all() else frame


def comparisons(verdicts: Sequence[Verdict]) -> "DataFrame":
    """Return one row for every paired comparison, `second` − `first`."""
    fields = ("model", "eval", "budget", "first", "second", "metric", "column", "mean", "p", "n", "needed", "margin")
    rows = [
        {
            **{field: getattr(verdict, field) for field in fields},
            **{"p_equivalence": verdict.equivalence, **_bounds(verdict.interval, verdict.digits)},
            **{"partial": verdict.partial, "verdict": verdict.words},
        }
        for verdict in verdicts
    ]
    kinds = {"needed": "Int64", "margin": "float64", "p_equivalence": "float64"}
    return _frame(rows).astype(kinds).round({"p": 4, "p_equivalence": 4})


def _frame(rows: list[dict[str, Any]]) -> "DataFrame":
    import pandas as pd

    from evals.results.frames import budget_column

    frame = pd.DataFrame(rows)
    return frame.assign(budget=budget_column(frame["budget"]))


def _bounds(interval: tuple[float, float] | None, digits: int) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low if low is None else round(low, digits), "high": high if high is None else round(high, digits)}


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
