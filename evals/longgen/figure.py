"""Draw the KL divergence from the full cache over the position in the answer."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from compresskv.budget import Budget, smallest_first
from evals.results.record import Record
from evals.tables import text
from evals.tables.figures import STYLES, legend_label
from evals.tables.table import Row, Table

SPAN = 8
"""Number of tokens in the moving mean."""

LEAST = 1e-4
"""Smallest value in the figure, in nats: sample lines are rounded to this precision."""

FIRST = 2
"""Position in the answer of the first value of `kl_per_token`: token 1 comes from the prefill of the prompt."""

Curve = tuple[np.ndarray, np.ndarray]
"""Positions of tokens in the answer, from 1, and the KL at each in nats."""

Schedule = tuple[str, int | None]
"""When a setting evicts, in words, and its eviction interval in tokens during decode (None: no eviction)."""


def over_position(table: Table) -> Figure | None:
    """Draw a panel for each budget and schedule, with a curve for each setting; None without measurements.

    Curves are averaged over prompts, and over each token and up to `SPAN` − 1 tokens before it. Dotted lines mark
    evictions: the token after a line is the first one predicted from the evicted cache.
    """
    panels: dict[tuple[Budget, Schedule], list[tuple[Row, Curve]]] = {}
    for row in table.rows:
        if row.budget is None or not (curve := curve_of(row.records)):
            continue
        panels.setdefault((row.budget, schedule(row.records[0])), []).append((row, curve))
    if not panels:
        return None
    budgets = sorted({budget for budget, _ in panels}, key=smallest_first)
    schedules = list(dict.fromkeys(found for _, found in panels))
    size = (max(4.6 * len(schedules), 8), 2.9 * len(budgets) + 1)
    figure, axes = plt.subplots(
        len(budgets), len(schedules), figsize=size, squeeze=False, sharex=True, sharey="row", layout="constrained"
    )
    methods = list(dict.fromkeys(row.name.method for rows in panels.values() for row, _ in rows))
    handles: dict[str, Line2D] = {}
    for line, budget in enumerate(budgets):
        for column, (words, interval) in enumerate(schedules):
            axis = axes[line, column]
            rows = panels.get((budget, (words, interval)), [])
            here = [row.name.method for row, _ in rows]
            for row, (xs, ys) in rows:
                method, place = row.name.method, methods.index(row.name.method)
                name = f"{method} {row.name.variant}".strip() if here.count(method) > 1 else method
                look = {"color": f"C{place % 10}", "linestyle": STYLES[place // 10 % len(STYLES)], "linewidth": 1.1}
                (drawn,) = axis.plot(xs, ys.clip(LEAST), label=legend_label(name), **look)
                handles.setdefault(name, drawn)
            end = max((int(xs[-1]) for _, (xs, _) in rows), default=0)
            for at in range(interval + 1, end, interval) if interval else ():  # predicted before the eviction
                axis.axvline(at + 0.5, color="black", linestyle=":", linewidth=0.7, alpha=0.6)
            axis.set_title(f"budget {budget}, {words}", fontsize=9)
            axis.set_yscale("log")
            axis.grid(alpha=0.25)
    title = f"{text.heading(table)}\nKL from the full cache along its own text; means of up to {SPAN} tokens"
    figure.suptitle(title, fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("generated tokens; dotted: an eviction", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("nats per token", fontsize=9)
    names = [legend_label(name) for name in handles]
    figure.legend(list(handles.values()), names, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def curve_of(records: Sequence[Record]) -> Curve | None:
    """Average over all samples of these records that reach a position; None if no sample has values."""
    values = [line["kl_per_token"] for record in records for line in record.covered if line.get("kl_per_token")]
    if not values:
        return None
    longest = max(map(len, values))
    padded = np.array([[*of_sample, *[np.nan] * (longest - len(of_sample))] for of_sample in values], dtype=float)
    means, before = np.nanmean(padded, axis=0), np.ones(SPAN)
    smooth = np.convolve(means, before)[:longest] / np.convolve(np.ones(longest), before)[:longest]
    return np.arange(FIRST, FIRST + longest), smooth


def schedule(record: Record) -> Schedule:
    """Return the eviction schedule of a setting, from its configuration."""
    node = record.config.get("eviction")
    if not record.when.endswith("+decode") or not isinstance(node, dict) or not isinstance(node.get("interval"), int):
        return f"eviction after the {record.when}", None
    interval = node["interval"]
    return f"{record.when}, interval {interval}, protect {node.get('protect', 'none')}", interval
