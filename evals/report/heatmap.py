"""The needle heatmaps of a model: a row for every method, a panel for every budget, one scale for all."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from evals.niah.heatmap import COLOURS
from evals.niah.heatmap import grid as cells_of
from evals.report.cells import Grid, Row
from evals.report.labels import tokens_label
from evals.report.page import heading, partial
from evals.results.schema import Line

WRITTEN = 60
"""Up to so many cells in a panel, each has its value in it."""


def heatmaps(grid: Grid) -> Figure:
    """Mean score by prompt length and needle depth; the panel's title has method, budget and the mean."""
    by_method: dict[str, list[Row]] = {}
    for row in grid.rows:
        by_method.setdefault(row.label, []).append(row)
    columns = max(map(len, by_method.values()))
    size = (3 * columns + 1.2, 2.4 * len(by_method) + 0.6)
    figure, axes = plt.subplots(len(by_method), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for place, rows in enumerate(by_method.values()):
        for axis, row in zip(axes[place], sorted(rows, key=lambda row: row.budget or 0), strict=False):
            image = _draw(axis, row, grid.overall)
    figure.suptitle(heading(grid), fontsize=11)
    figure.supxlabel("prompt length (tokens)", fontsize=9)
    figure.supylabel("needle depth (%)", fontsize=9)
    figure.colorbar(image, ax=axes, label="score", shrink=0.8)
    return figure


def _draw(axis: Axes, row: Row, column: str) -> AxesImage:
    axis.set_visible(True)
    lines: list[Line] = []
    for record in row.records:
        lines += record.covered
    cells, lengths, depths = cells_of(lines, "score")
    image = axis.imshow(cells, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    mean = row.cells[column]
    name = row.label if row.budget is None else f"{row.label} {row.budget}"
    axis.set_title(f"{name}: {mean.mean:.1f} {partial(mean)}".strip(), fontsize=9)
    axis.set_xticks(range(len(lengths)), [tokens_label(length) for length in lengths], fontsize=7)
    axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=7)
    if cells.size <= WRITTEN:
        _write_values(axis, cells)
    return image


def _write_values(axis: Axes, cells: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            shade = "white" if value < 55 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=shade)
