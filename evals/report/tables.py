"""An item as CSV: a row for every mean, and one for every comparison."""

from collections.abc import Sequence

import pandas as pd

from evals.report.cells import Grid
from evals.report.verdicts import Verdict


def means(grids: Sequence[Grid]) -> pd.DataFrame:
    """One row for every cell of `grids`, with the published number beside it.

    `low` and `high` are the 95 % interval; `of` is how many samples there are to be had.
    """
    rows = []
    for grid in grids:
        for row in grid.rows:
            for column, cell in row.cells.items():
                low, high = (round(bound, cell.digits) for bound in cell.interval) if cell.interval else (None, None)
                place = {"model": grid.model, "eval": grid.eval, "protocol": row.protocol, "method": row.method}
                measured = {"mean": cell.mean, "low": low, "high": high, "n": cell.n, "of": cell.of}
                compared = {
                    "partial": cell.partial,
                    "published": cell.published,
                    "source": cell.source,
                    "difference": cell.difference,
                    "not_comparable": "nothing published" if cell.published is None else cell.apart,
                }
                named = {"variant": row.variant, "metric": grid.metric.field, "column": column}
                budget = {"budget": row.budget, **named}
                rows.append({**place, **budget, **measured, **compared})
    return pd.DataFrame(rows).astype({"budget": "Int64"})


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row for every paired comparison, `second` − `first`."""
    rows = []
    for verdict in verdicts:
        low, high = (round(bound, verdict.digits) for bound in verdict.interval) if verdict.interval else (None, None)
        fields = ("model", "eval", "budget", "first", "second", "metric", "column", "mean", "p", "n", "needed")
        values = {field: getattr(verdict, field) for field in fields}
        rows.append({**values, "low": low, "high": high, "partial": verdict.partial, "verdict": verdict.words})
    return pd.DataFrame(rows).astype({"budget": "Int64", "needed": "Int64"}).round({"p": 4})
