"""The field's figure: score by prompt length and needle depth, one panel a setting, one scale for all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from evals.report.figure import save
from evals.report.labels import tokens_label
from evals.results.record import Record, covered_lines
from evals.results.schema import Line

# Perceptually uniform, safe for colour-blind readers, and monotone in lightness, so it survives grey printing.
COLOURS = "cividis"


Cells = tuple[np.ndarray, list[int], list[float]]
"""Means by depth (rows) and length (columns), NaN where nothing ran; the lengths, and the depths."""


def grid(lines: Sequence[Line], metric: str, all_lines: Sequence[Line] = ()) -> Cells:
    """Mean `metric` of the cells that any of `lines`, or of `all_lines`, is in."""
    placed = [line for line in (*lines, *all_lines) if "length" in line and "depth" in line]
    lengths = sorted({line["length"] for line in placed})
    depths = sorted({line["depth"] for line in placed})
    cells = np.full((len(depths), len(lengths)), np.nan)
    for row, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            values = [line[metric] for line in lines if (line.get("length"), line.get("depth")) == (length, depth)]
            if values:
                cells[row, column] = np.mean(values)
    return cells, lengths, depths


Panel = tuple[str, Sequence[Line]]
"""A setting's name and its sample lines."""

LABELS = 9
"""Of lengths or depths at an axis at most, so that none is over another."""

COLUMNS = 4
"""Panels in a row where every method has but one budget."""


def panels(records: Mapping[str, Sequence[Record]]) -> list[list[Panel]]:
    """Rows of panels: a row per method and protocol with its budgets, or methods side by side if each has one."""
    rows: dict[tuple[str, str], list[Panel]] = {}
    for name, of_setting in records.items():
        place = of_setting[0].method, of_setting[0].protocol
        rows.setdefault(place, []).append((name, covered_lines(of_setting)))
    if max(map(len, rows.values())) > 1:
        return list(rows.values())
    single = [row[0] for row in rows.values()]
    return [single[start : start + COLUMNS] for start in range(0, len(single), COLUMNS)]


def draw(rows: Sequence[Sequence[Panel]], title: str, stem: Path, metric: str = "score") -> list[Path]:
    """One panel for each (name, lines), in rows, written to `stem` + .png and .svg; returns the two paths."""
    titled = []
    for row in rows:
        # The mean as a summary has it, so that tables agree.
        means = [round(float(np.mean([line[metric] for line in lines])), 2) for _, lines in row]
        titled.append([(f"{name}: {mean:.1f}", lines) for (name, lines), mean in zip(row, means, strict=True)])
    return save(drawn(titled, title, metric), stem, (".png", ".svg"))


def drawn(rows: Sequence[Sequence[Panel]], title: str, metric: str = "score") -> Figure:
    """A heatmap under the title of each panel, all with the same lengths and depths, and one scale."""
    columns = max(map(len, rows))
    size = (3.2 * columns + 1, 2.7 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    all_lines: list[Line] = []
    for panels_of_row in rows:
        for _, lines in panels_of_row:
            all_lines += lines
    for row, panels_of_row in enumerate(rows):
        for column, (name, lines) in enumerate(panels_of_row):
            image = _draw_panel(axes[row, column], name, grid(lines, metric, all_lines))
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("prompt length (tokens)", fontsize=9)
    figure.supylabel("needle depth (%)", fontsize=9)
    figure.colorbar(image, ax=axes, label="ROUGE-1 recall of the answer", shrink=0.8, aspect=30)
    return figure


def _draw_panel(axis: Axes, title: str, means: Cells) -> AxesImage:
    """One heatmap, with the value of each cell if there is room."""
    cells, lengths, depths = means
    axis.set_visible(True)
    image = axis.imshow(cells, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    axis.set_title(title, fontsize=9)
    shown = range(0, len(lengths), -(-len(lengths) // LABELS))
    axis.set_xticks(shown, [tokens_label(lengths[place]) for place in shown], fontsize=8)
    shown = range(0, len(depths), -(-len(depths) // LABELS))
    axis.set_yticks(shown, [f"{depths[place]:g}" for place in shown], fontsize=8)
    if cells.size <= 60:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                shade = "white" if value < 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    return image
