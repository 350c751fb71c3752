"""Needle heatmaps of the page: mean score by prompt length and needle depth, for every method and budget."""

from typing import Any

from evals.report.cells import Grid, Row
from evals.report.labels import tokens_label


def boards(grid: Grid) -> dict[str, Any]:
    """The panels of a model: `cells` are by depth, then by length; None where nothing ran."""
    lengths: set[int] = set()
    depths: set[float] = set()
    means = [_means(row) for row in grid.rows]
    for of_row in means:
        lengths |= {length for length, _ in of_row}
        depths |= {depth for _, depth in of_row}
    columns, rows = sorted(lengths), sorted(depths)
    panels = []
    for row, of_row in zip(grid.rows, means, strict=True):
        cells = []
        for depth in rows:
            cells.append([of_row.get((length, depth)) for length in columns])
        cell = row.cells[grid.overall]
        panel = {"method": row.label, "budget": row.budget, "mean": cell.mean, "n": cell.n, "cells": cells}
        panels.append(panel | ({"partial": f"{cell.counted} of {cell.of}"} if cell.partial else {}))
    return {
        "model": grid.model,
        "lengths": [tokens_label(length) for length in columns],
        "depths": [f"{depth:g}" for depth in rows],
        "panels": panels,
    }


def _means(row: Row) -> dict[tuple[int, float], float]:
    scores: dict[tuple[int, float], list[float]] = {}
    for record in row.records:
        for line in record.covered:
            length, depth = line.get("length"), line.get("depth")
            if isinstance(length, int) and isinstance(depth, (int, float)):
                scores.setdefault((length, float(depth)), []).append(line["score"])
    return {place: round(sum(values) / len(values), 1) for place, values in scores.items()}
