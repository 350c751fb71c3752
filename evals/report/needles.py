"""Whether the order of the methods is the same for other needles, and in another haystack."""

from collections.abc import Sequence

from evals.report.cells import Grid, Row


def agreement_of_orders(grids: Sequence[Grid]) -> list[str]:
    """A sentence for every grid and budget: Kendall's tau-b of each column's order of methods with the average's."""
    notes = []
    for grid in grids:
        for budget, rows in grid.budgets.items():
            whole = [row for row in rows if len(row.cells) == len(grid.columns)]
            whole = [row for row in whole if row.cells[grid.overall].same_prompts(whole[0].cells[grid.overall])]
            if budget is None or len(whole) < 3:
                continue
            shown = [
                f"{column} {_tau(whole, column, grid.overall)}" for column in grid.columns if column != grid.overall
            ]
            place = f"{grid.model}, {grid.metric.field}, budget {budget}"
            notes.append(
                f"{place}: Kendall's tau-b of the order of {len(whole)} methods with that of the average: "
                f"{', '.join(shown)}."
            )
    return notes


def _tau(rows: Sequence[Row], column: str, overall: str) -> str:
    """– where all methods are equal."""
    from scipy.stats import kendalltau

    tau = kendalltau([row.cells[column].mean for row in rows], [row.cells[overall].mean for row in rows]).statistic
    return "–" if tau != tau else f"{tau:.2f}"
