"""Draw the usual needle heatmaps: score by prompt length and needle depth, a panel per setting, on one scale."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from compresskv.budget import smallest_first
from evals.niah.cells import means
from evals.tables import text
from evals.tables.table import Row, Table

# Perceptually uniform, safe for colour-blind readers, and monotone in lightness, so it can be printed in grey.
COLOURS = "cividis"

Means = Mapping[tuple[int, float], float]
"""Mean scores by prompt length and needle depth."""

LABELS = 9
"""Maximum number of tick labels on an axis, so that they do not overlap."""

COLUMNS = 4
"""Panels per row if every method has only one budget."""


def heatmaps(table: Table) -> Figure:
    """Draw a row of panels per method, one panel for each budget, or methods side by side if each method has one
    budget."""
    by_method: dict[str, list[Row]] = {}
    for row in table.rows:
        if table.overall in row.cells:
            by_method.setdefault(row.label, []).append(row)
    rows = [sorted(rows, key=lambda row: smallest_first(row.budget)) for rows in by_method.values()]
    if max(map(len, rows)) == 1:
        single = [row for (row,) in rows]
        rows = [single[start : start + COLUMNS] for start in range(0, len(single), COLUMNS)]
    panels = [[(_title(row, table.overall), means(row.records)) for row in of_method] for of_method in rows]
    return drawn(panels, text.figure_title(table))


def _title(row: Row, column: str) -> str:
    cell = row.cells[column]
    numbers = [text.number(cell.mean, 1), text.bounds(cell.interval), text.partial(cell)]
    return f"{row.name}\n{' '.join(filter(None, numbers))}"


def drawn(rows: Sequence[Sequence[tuple[str, Means]]], title: str) -> Figure:
    """Draw the titled panels as heatmaps with the same lengths, depths and colour scale."""
    columns = max(map(len, rows))
    size = (3.2 * columns + 1, 2.7 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    places = {place for panels in rows for _, of_panel in panels for place in of_panel}
    lengths, depths = sorted({length for length, _ in places}), sorted({depth for _, depth in places})
    for row, panels in enumerate(rows):
        for column, (name, of_panel) in enumerate(panels):
            image = _draw_panel(axes[row, column], name, of_panel, lengths, depths)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("prompt length (tokens)", fontsize=9)
    figure.supylabel("needle depth (%)", fontsize=9)
    figure.colorbar(image, ax=axes, label="ROUGE-1 recall of the answer", shrink=0.8, aspect=30)
    return figure


def _draw_panel(axis: Axes, title: str, values: Means, lengths: Sequence[int], depths: Sequence[float]) -> AxesImage:
    """Draw one heatmap, with the value of each cell if there is room. Cells without samples stay empty."""
    cells = np.array([[values.get((length, depth), np.nan) for length in lengths] for depth in depths])
    cells = cells.reshape(len(depths), len(lengths))
    axis.set_visible(True)
    image = axis.imshow(cells, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    axis.set_title(title, fontsize=9)
    shown = range(0, len(lengths), max(1, -(-len(lengths) // LABELS)))
    axis.set_xticks(shown, [text.tokens(lengths[place]) for place in shown], fontsize=8)
    shown = range(0, len(depths), max(1, -(-len(depths) // LABELS)))
    axis.set_yticks(shown, [f"{depths[place]:g}" for place in shown], fontsize=8)
    if cells.size <= 60:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                shade = "white" if value < 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    return image
