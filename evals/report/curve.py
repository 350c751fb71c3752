"""Lines with their 95 % intervals: scores over budgets, or tokens over layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from evals.report.cells import AVERAGE, Cell, Grid, Row
from evals.report.labels import tokens_of
from evals.report.masking import masked_heads
from evals.report.page import heading

MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Point:
    x: float
    cell: Cell


def over_budget(grid: Grid) -> Figure:
    """The average of every method over the budget, on a scale of powers of two; the full cache is a level line.

    Means over part of the samples have hollow markers.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    lines: dict[str, list[Point]] = {}
    for row in grid.rows:
        cell = row.cells.get(grid.overall)
        if cell is None:
            continue
        if row.budget is None:
            axis.axhline(cell.mean, color="black", linestyle="--", linewidth=1, label=_label(row.label, [cell]))
        else:
            lines.setdefault(row.label, []).append(Point(row.budget, cell))
    for place, (label, points) in enumerate(lines.items()):
        _draw(axis, label, sorted(points, key=lambda point: point.x), place)
    budgets = sorted({row.budget for row in grid.rows if row.budget is not None})
    if budgets:
        axis.set_xscale("log", base=2)
        axis.set_xticks(budgets, [str(budget) for budget in budgets])
        axis.minorticks_off()
    axis.set_xlabel("budget (KV tokens per layer and head)")
    axis.set_ylabel(f"score, {grid.overall}")
    return _finished(figure, grid)


def over_layers(grid: Grid) -> Figure:
    """Tokens that each layer keeps, a line for each row."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    layers = [column for column in grid.columns if column != AVERAGE]
    for place, row in enumerate(grid.rows):
        points = [Point(x, row.cells[layer]) for x, layer in enumerate(layers) if layer in row.cells]
        _draw(axis, _setting_label(row), points, place)
    axis.set_xlabel("layer")
    axis.set_ylabel("KV tokens kept per head")
    axis.set_ylim(bottom=0)
    return _finished(figure, grid)


def over_masked(grid: Grid) -> Figure:
    """The score over the number of masked heads, a line for each ranking of heads."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    numbers = {column: masked_heads(column) for column in grid.columns if column.startswith("K = ")}
    for place, row in enumerate(grid.rows):
        points = [Point(x, row.cells[column]) for column, x in numbers.items() if column in row.cells]
        _draw(axis, row.label, points, place)
    axis.set_xticks(list(numbers.values()))
    axis.set_xlabel("masked query heads (K)")
    axis.set_ylabel("score")
    axis.set_ylim(bottom=0)
    return _finished(figure, grid)


def over_lengths(grids: Sequence[Grid]) -> Figure:
    """A panel for each grid of a model, over prompt lengths; a line for each row."""
    columns = 3
    rows = -(-len(grids) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(grids) :]:
        axis.set_visible(False)
    for axis, grid in zip(axes.flat, grids, strict=False):
        for place, row in enumerate(grid.rows):
            points = [Point(tokens_of(column), row.cells[column]) for column in grid.columns if column in row.cells]
            _draw(axis, _setting_label(row), points, place)
        axis.set_xticks([tokens_of(column) for column in grid.columns], list(grid.columns))
        axis.set_xlabel("prompt (tokens)")
        axis.set_ylabel(grid.metric.title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"Latency and memory, {grids[0].model}", fontsize=11)
    return figure


def _setting_label(row: Row) -> str:
    return row.label if row.budget is None else f"{row.label} {row.budget}"


def _draw(axis: plt.Axes, label: str, points: Sequence[Point], place: int) -> None:
    xs = [point.x for point in points]
    means = [point.cell.mean for point in points]
    hollow = any(point.cell.partial for point in points)
    (line,) = axis.plot(
        xs,
        means,
        marker=MARKERS[place % len(MARKERS)],
        markersize=4,
        markerfacecolor="white" if hollow else None,
        label=_label(label, [point.cell for point in points]),
    )
    bounds = [point.cell.interval or (point.cell.mean, point.cell.mean) for point in points]
    lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
    axis.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)


def _label(label: str, cells: Sequence[Cell]) -> str:
    return f"{label} †" if any(cell.partial for cell in cells) else label


def _finished(figure: Figure, grid: Grid) -> Figure:
    axis = figure.axes[0]
    partial = any("†" in text for text in axis.get_legend_handles_labels()[1])
    axis.set_title(heading(grid) + (" († partial)" if partial else ""), fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure
