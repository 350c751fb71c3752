"""The field's figure: score by prompt length and needle depth, one panel a setting, one scale for all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from evals.report.figure import save
from evals.results.record import Record
from evals.results.schema import Line

# Perceptually uniform, safe for colour-blind readers, and monotone in lightness, so it survives grey printing.
COLOURS = "cividis"


def grid(lines: Sequence[Line], metric: str) -> tuple[np.ndarray, list[int], list[float]]:
    """Mean `metric` by depth (rows) and length (columns); NaN where nothing ran. Returns the lengths and depths too."""
    lengths = sorted({line["length"] for line in lines})
    depths = sorted({line["depth"] for line in lines})
    cells = np.full((len(depths), len(lengths)), np.nan)
    for row, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            values = [line[metric] for line in lines if (line["length"], line["depth"]) == (length, depth)]
            if values:
                cells[row, column] = np.mean(values)
    return cells, lengths, depths


Panel = tuple[str, Sequence[Line]]
"""A setting's name and its sample lines."""

COLUMNS = 4
"""Panels in a row where every method has but one budget."""


def panels(records: Mapping[str, Sequence[Record]]) -> list[list[Panel]]:
    """Rows of panels: a row per method and protocol with its budgets, or methods side by side if each has one."""
    rows: dict[tuple[str, str], list[Panel]] = {}
    for name, (record,) in records.items():
        rows.setdefault((record.method, record.protocol), []).append((name, record.covered))
    if max(map(len, rows.values())) > 1:
        return list(rows.values())
    single = [row[0] for row in rows.values()]
    return [single[start : start + COLUMNS] for start in range(0, len(single), COLUMNS)]


def draw(rows: Sequence[Sequence[Panel]], title: str, stem: Path, metric: str = "score") -> list[Path]:
    """One panel for each (name, lines), in rows, written to `stem` + .png and .svg; returns the two paths."""
    columns = max(map(len, rows))
    size = (3.2 * columns + 1, 2.7 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for row, panels_of_row in enumerate(rows):
        for column, (name, lines) in enumerate(panels_of_row):
            image = _draw_panel(axes[row, column], name, lines, metric)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("prompt length (tokens)", fontsize=9)
    figure.supylabel("needle depth (%)", fontsize=9)
    figure.colorbar(image, ax=axes, label="ROUGE-1 recall of the answer", shrink=0.8)
    return save(figure, stem, (".png", ".svg"))


def _draw_panel(axis: Axes, name: str, lines: Sequence[Line], metric: str) -> AxesImage:
    """One heatmap, with the mean in its title and, if there is room, the value of each cell."""
    axis.set_visible(True)
    cells, lengths, depths = grid(lines, metric)
    image = axis.imshow(cells, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    axis.set_title(f"{name}: {np.mean([line[metric] for line in lines]):.1f}", fontsize=10)
    axis.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths], fontsize=8)
    axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=8)
    if cells.size <= 60:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                shade = "white" if value < 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    return image


def _tokens(length: int) -> str:
    return f"{length / 1000:g}K" if length >= 1000 else str(length)
