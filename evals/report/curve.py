"""Lines with their 95 % intervals: scores over budgets, or tokens over layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evals.report.cells import AVERAGE, Cell, Grid, Row
from evals.report.figure import legend_label
from evals.report.labels import tokens_of
from evals.report.masking import masked_heads
from evals.report.page import figure_title

MARKERS = "osD^vP*X<>"
STYLES = ("-", "--", ":", "-.")
"""One for every ten lines, which have ten colours."""


@dataclass(frozen=True)
class Point:
    x: float
    cell: Cell


def over_budget(grid: Grid) -> Figure:
    """The average of every method over the budget, on a scale of powers of two; the full cache is a level line."""
    figure, axis = _one_panel()
    lines: dict[str, list[Point]] = {}
    levels: dict[str, Cell] = {}
    for row in grid.rows:
        cell = row.cells.get(grid.overall)
        if cell is None:
            continue
        if row.budget is None:
            levels[row.label] = cell
        else:
            lines.setdefault(row.label, []).append(Point(row.budget, cell))
    for (label, cell), style in zip(levels.items(), ("--", ":", "-.", "-"), strict=False):
        axis.axhline(cell.mean, color="black", linestyle=style, linewidth=1, label=_label(label, [cell]))
        if cell.interval:
            axis.axhspan(*cell.interval, color="black", alpha=0.06, linewidth=0)
    for place, (label, points) in enumerate(lines.items()):
        _draw(axis, label, sorted(points, key=lambda point: point.x), place)
    budgets = sorted({row.budget for row in grid.rows if row.budget is not None})
    if budgets:
        axis.set_xscale("log", base=2)
        axis.set_xticks(budgets, [str(budget) for budget in budgets])
        axis.minorticks_off()
    axis.set_xlabel("budget (KV tokens per layer and head)")
    axis.set_ylabel(f"{grid.metric.title or 'score'}, {grid.overall}")
    return _finished(figure, axis, grid)


def over_layers(grid: Grid) -> Figure:
    """Tokens that each layer keeps, a line for each row."""
    layers = {column: int(column.rpartition(" ")[2]) for column in grid.columns if column != AVERAGE}
    figure, axis = _rows_over(grid, layers, lambda row: row.setting)
    axis.set_xlabel("layer")
    axis.set_ylabel("KV tokens kept per head")
    axis.set_ylim(bottom=0)
    return _finished(figure, axis, grid)


def over_masked(grid: Grid) -> Figure:
    """The score over the number of masked heads, a line for each ranking of heads."""
    numbers = {column: masked_heads(column) for column in grid.columns if column.startswith("K = ")}
    figure, axis = _rows_over(grid, numbers, lambda row: row.label)
    axis.set_xticks(list(numbers.values()))
    axis.set_xlabel("masked query heads (K)")
    axis.set_ylabel("score (ROUGE-1 recall of the answer)")
    axis.set_ylim(bottom=0)
    return _finished(figure, axis, grid)


def over_lengths(grids: Sequence[Grid]) -> Figure:
    """A panel for each grid of a model, over prompt lengths; a line for each row."""
    columns = 3
    rows = -(-len(grids) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(grids) :]:
        axis.set_visible(False)
    for axis, grid in zip(axes.flat, grids, strict=False):
        lengths = {column: tokens_of(column) for column in grid.columns}
        _draw_rows(axis, grid, lengths, lambda row: row.setting)
        axis.set_xticks(list(lengths.values()), list(lengths))
        axis.set_xlabel("prompt (tokens)")
        axis.set_ylabel(grid.metric.title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(figure_title(grids[0], f"{grids[0].model}, latency and memory"), fontsize=11)
    return figure


def _one_panel() -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(7.5, 4), layout="constrained")


def _rows_over(grid: Grid, xs: dict[str, int], label: Callable[[Row], str]) -> tuple[Figure, Axes]:
    figure, axis = _one_panel()
    _draw_rows(axis, grid, xs, label)
    return figure, axis


def _draw_rows(axis: Axes, grid: Grid, xs: dict[str, int] | dict[str, float], label: Callable[[Row], str]) -> None:
    """A line for each row; `xs` has the place of each column."""
    for place, row in enumerate(grid.rows):
        _draw(axis, label(row), [Point(x, row.cells[column]) for column, x in xs.items() if column in row.cells], place)


def _draw(axis: Axes, label: str, points: Sequence[Point], place: int) -> None:
    """A line with its intervals; means over part of the samples have hollow markers."""
    marker, style = MARKERS[place % len(MARKERS)], STYLES[place // len(MARKERS) % len(STYLES)]
    xs, means = [point.x for point in points], [point.cell.mean for point in points]
    text = _label(label, [point.cell for point in points])
    (line,) = axis.plot(xs, means, marker=marker, linestyle=style, markersize=4, label=text)
    hollow = [(point.x, point.cell.mean) for point in points if point.cell.partial]
    if hollow:
        look: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4, "color": line.get_color()}
        axis.plot(*zip(*hollow, strict=True), markerfacecolor="white", **look)
    bounds = [point.cell.interval or (point.cell.mean, point.cell.mean) for point in points]
    lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
    axis.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)


def _label(label: str, cells: Sequence[Cell]) -> str:
    return legend_label(f"{label} †" if any(cell.partial for cell in cells) else label)


def _finished(figure: Figure, axis: Axes, grid: Grid) -> Figure:
    """With a title, and the legend beside the lines, where it hides none."""
    axis.set_title(figure_title(grid), fontsize=10)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
