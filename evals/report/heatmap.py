"""The needle heatmaps of a model: a row for every method, a panel for every budget, one scale for all."""

from matplotlib.figure import Figure

from evals.niah.heatmap import Panel, drawn
from evals.report.cells import Grid, Row
from evals.report.page import bounds, figure_title, partial
from evals.results.record import covered_lines


def heatmaps(grid: Grid) -> Figure:
    """Mean score by prompt length and needle depth; above each, its method, budget and mean with its interval."""
    by_method: dict[str, list[Row]] = {}
    for row in grid.rows:
        by_method.setdefault(row.label, []).append(row)
    rows = [sorted(rows, key=lambda row: row.budget or 0) for rows in by_method.values()]
    return drawn([[_panel(row, grid.overall) for row in of_method] for of_method in rows], figure_title(grid))


def _panel(row: Row, column: str) -> Panel:
    mean = row.cells[column]
    numbers = [f"{mean.mean:.1f}", bounds(mean.interval), partial(mean)]
    return f"{row.setting}\n{' '.join(filter(None, numbers))}", covered_lines(row.records)
