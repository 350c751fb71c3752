"""The field's figure: score by prompt length and needle depth, one panel a setting, one scale for all."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from evals.results.store import Line

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


def draw(panels: Sequence[Sequence[Panel]], title: str, stem: Path, metric: str = "score") -> list[Path]:
    """One panel for each (name, lines), in rows, written to `stem` + .png and .svg; returns the two paths."""
    rows, columns = len(panels), max(map(len, panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 1, 2.7 * rows + 0.6), squeeze=False, layout="constrained"
    )
    image = None
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (name, lines) in ((axes[r, c], panel) for r, row in enumerate(panels) for c, panel in enumerate(row)):
        axis.set_visible(True)
        cells, lengths, depths = grid(lines, metric)
        image = axis.imshow(cells, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
        axis.set_title(f"{name}: {np.mean([line[metric] for line in lines]):.1f}", fontsize=10)
        axis.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths], fontsize=8)
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=8)
        if len(depths) * len(lengths) <= 60:
            for (row, column), value in np.ndenumerate(cells):
                if not np.isnan(value):
                    shade = "white" if value < 55 else "black"
                    axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("prompt length (tokens)", fontsize=9)
    figure.supylabel("needle depth (%)", fontsize=9)
    figure.colorbar(image, ax=axes, label="ROUGE-1 recall of the answer", shrink=0.8)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in paths:
        # Without dates, equal results give equal files.
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def _tokens(length: int) -> str:
    return f"{length / 1000:g}K" if length >= 1000 else str(length)
