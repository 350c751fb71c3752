"""Draw tokens per second over the size of KV memory pools."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from evals.tables.figures import legend_label

Rows = Sequence[Mapping[str, Any]]
"""The rows of `concurrency` in efficiency.json."""


Speeds = Mapping[int, Mapping[str, Sequence[tuple[float, float]]]]
"""(MB of the pool, tokens/s) by prompt length and setting."""


def draw(rows: Rows, names: Sequence[str], of_lengths: Speeds, title: str) -> Figure:
    """Draw a panel for each prompt length with a line for each setting; `names` has the setting's name for each row."""
    ticks = _ticks(rows)
    figure, axes = plt.subplots(
        1, len(of_lengths), figsize=(4.4 * len(of_lengths), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (length, settings) in zip(axes.flat, of_lengths.items(), strict=True):
        for number, (setting, points) in enumerate(settings.items()):
            (line,) = axis.plot(
                *zip(*points, strict=True), marker="osD^v<>Pph*X"[number % 12], label=legend_label(setting)
            )
            axis.plot(*points[0], marker="o", markersize=11, fillstyle="none", color=line.get_color())
            for row, name in zip(rows, names, strict=True):
                if (name, row["length"]) == (setting, length) and row["sequences"]:
                    look = {"color": line.get_color(), "alpha": 0.5, "linewidth": 1}
                    axis.vlines(row["pool_mb"], *row["tokens_per_s_spread"], **look)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"prompts of {length} tokens", fontsize=10)
        axis.set_xlabel("KV memory pool (MB); ringed: one sequence")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes.flat[0].set_ylabel("tokens per second, all sequences")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _ticks(rows: Rows) -> list[float]:
    """Return the sizes of all pools. Halves of the largest size follow, down to the size of the smallest sequence."""
    ticks = {float(row["pool_mb"]) for row in rows}
    tick = max(ticks)
    while tick > min(row["sequence_bytes"] / 1e6 for row in rows):
        ticks.add(tick)
        tick /= 2
    return sorted(ticks)
