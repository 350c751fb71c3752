"""Draw tables as lines with 95 % intervals, and write figures as PNG, SVG and PDF."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from evals.console import visible
from evals.files import write_bytes
from evals.tables import text
from evals.tables.table import Cell, Table

MARKERS = "osD^vP*X<>"
STYLES = ("-", "--", ":", "-.")
"""Line styles; the next one is used after every ten lines, because there are ten colours."""

MOST_LABELS = 20
"""Maximum number of legend entries next to a figure of the default height."""

MOST_TICKS = 12
"""Maximum number of columns that become ticks of an axis; an axis with more columns has round numbers as ticks."""

METADATA: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Metadata of the file by suffix. Dates are left out, so that equal results give equal files."""


def save(figure: Any, stem: Path, suffixes: Iterable[str] = METADATA) -> list[Path]:
    """Write `figure` to `stem` with each of the `suffixes`, close it, and return the paths.

    Raises `UserError` if a file cannot be written. A file is never left partly written.
    """
    paths = []
    try:
        _take_literally(figure)
        with matplotlib.rc_context({"svg.hashsalt": stem.name}):
            # Compute the layout once for all formats, since it takes the most time.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for suffix in suffixes:
                content = io.BytesIO()
                figure.savefig(content, format=suffix[1:], dpi=160, metadata=METADATA[suffix])
                paths.append(stem.with_name(stem.name + suffix))
                write_bytes(paths[-1], content.getvalue())
    finally:
        plt.close(figure)
    return paths


def legend_label(name: str) -> str:
    """Return the `label` for a legend. Matplotlib leaves out labels that start with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _take_literally(figure: Any) -> None:
    """Show names literally: do not parse dollar signs as math, and make control characters visible."""
    numbers = set()  # texts of the axes' numbers, which matplotlib may write as formulas
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            numbers.update([axis.offsetText, *axis.get_ticklabels(), *axis.get_ticklabels(minor=True)])
    for label in set(figure.findobj(Text)) - numbers:
        label.set_parse_math(False)
        label.set_text(visible(label.get_text()))


def over_budget(table: Table) -> Figure:
    """Draw the average of every method over the budget on a log2 scale; the full cache is a horizontal line."""
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    lines: dict[str, dict[float, Cell]] = {}
    levels: dict[str, Cell] = {}
    for row in table.rows:
        if cell := row.cells.get(table.overall):
            if row.budget is None:
                levels[row.label] = cell
            else:
                line, x = lines.setdefault(row.label, {}), table.place_of_budget(row)
                while x in line:  # shift a share that equals another budget in tokens
                    x *= 1.01
                line[x] = cell
    for (label, cell), style in zip(levels.items(), ("--", ":", "-.", "-"), strict=False):
        axis.axhline(cell.mean, color="black", linestyle=style, linewidth=1, label=_label(label, [cell]))
        if cell.interval:
            axis.axhspan(*cell.interval, color="black", alpha=0.06, linewidth=0)
    for place, (label, points) in enumerate(lines.items()):
        _line(axis, label, dict(sorted(points.items())), place)
    ticks: dict[float, dict[str, None]] = {}
    for row in table.rows:
        if row.budget is not None:
            ticks.setdefault(table.place_of_budget(row), {})[str(row.budget)] = None
    if ticks:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(ticks), [", ".join(ticks[place]) for place in sorted(ticks)])
        axis.minorticks_off()
    axis.set_xlabel(table.budget_axis)
    axis.set_ylabel(f"{table.metric.title or 'score'}, {table.overall}")
    axis.set_title(text.figure_title(table), fontsize=10)
    return _finished(figure, axis)


def over_columns(tables: Sequence[Table], above: str = "") -> Figure:
    """Draw a panel for each table: a line for each row over the columns with a position on the x axis."""
    columns = min(3, len(tables))
    rows = math.ceil(len(tables) / columns)
    alone = len(tables) == 1
    size = (7.5, 4) if alone else (4.2 * columns, 3.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, table in zip(axes.flat, tables, strict=False):
        xs = {column: table.xs[column] for column in table.columns if column in table.xs}
        for place, row in enumerate(table.rows):
            points = {x: row.cells[column] for column, x in xs.items() if column in row.cells}
            _line(axis, str(row.name), points, place)
        if len(xs) <= MOST_TICKS:
            axis.set_xticks(list(xs.values()), [text.tokens(round(x)) for x in xs.values()])
        axis.set_xlabel(table.axis)
        axis.set_ylabel(table.metric.axis or table.metric.title or table.metric.field)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    if alone:
        axes.flat[0].set_title(text.figure_title(tables[0]), fontsize=10)
        return _finished(figure, axes.flat[0])
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(text.figure_title(tables[0], above), fontsize=11)
    return figure


def _line(axis: Axes, label: str, points: dict[float, Cell], place: int) -> None:
    """Draw a line with its intervals. Means over part of the samples have hollow markers."""
    marker, style = MARKERS[place % len(MARKERS)], STYLES[place // len(MARKERS) % len(STYLES)]
    xs, means = list(points), [cell.mean for cell in points.values()]
    name = _label(label, list(points.values()))
    (line,) = axis.plot(xs, means, marker=marker, linestyle=style, markersize=4, label=name)
    hollow = [(x, cell.mean) for x, cell in points.items() if cell.partial]
    if hollow:
        look: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4, "color": line.get_color()}
        axis.plot(*zip(*hollow, strict=True), markerfacecolor="white", **look)
    bounds = [cell.interval or (cell.mean, cell.mean) for cell in points.values()]
    lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
    axis.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)


def _label(label: str, cells: Sequence[Cell]) -> str:
    return legend_label(f"{label} †" if any(cell.partial for cell in cells) else label)


def _finished(figure: Figure, axis: Axes) -> Figure:
    """Add the grid and a legend to the right of the axes. A long legend makes the figure taller."""
    axis.grid(alpha=0.25)
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > MOST_LABELS:
        figure.set_figheight(figure.get_figheight() * len(labels) / MOST_LABELS)
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure
