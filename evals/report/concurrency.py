"""Concurrency, as `eval=efficiency` measures it: what a KV memory pool holds and yields, as texts and as a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
"""The rows of `concurrency` in efficiency.json."""

HEADER = (
    "setting",
    "length",
    "pool MB",
    "sequences",
    "MB each",
    "tokens/s",
    "95 % of steps",
    "tokens/s, one sequence",
    "first token s",
    "all first tokens s",
    "peak MB",
)


def texts(row: Mapping[str, Any]) -> list[str]:
    """A row as the cells under `HEADER`; × is the ratio to the full cache in the same pool."""
    ratio = row.get("tokens_per_s_ratio")
    place = [row["setting"], str(row["length"]), str(row["pool_mb"])]
    if not row["sequences"]:
        alone = ["–", "–", _text(row["tokens_per_s_alone"], 1), "–", "–", "–"]
        return [*place, "0: does not fit", f"{row['sequence_bytes'] / 1e6:.1f}", *alone]
    return [
        *place,
        str(row["sequences"]),
        f"{row['sequence_bytes'] / 1e6:.1f}",
        _text(row["tokens_per_s"], 1) + ("*" if row["launch_bound"] else "") + (f" ×{ratio:.2f}" if ratio else ""),
        " to ".join(_text(bound, 1) for bound in row["tokens_per_s_spread"]),
        _text(row["tokens_per_s_alone"], 1),
        _text(row["first_token_s"], 2),
        _text(row["all_first_tokens_s"], 2),
        _text(row["peak_bytes"] and row["peak_bytes"] / 1e6, 1),
    ]


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def lines(rows: Rows, length: int) -> dict[str, list[tuple[float, float]]]:
    """(MB of the pool, tokens/s) of each setting at a prompt length, rising.

    A line begins where a pool holds one sequence: below, the setting decodes nothing.
    """
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["length"] == length:
            of_setting = points.setdefault(row["setting"], {row["sequence_bytes"] / 1e6: row["tokens_per_s_alone"]})
            if row["sequences"]:
                of_setting[row["pool_mb"]] = row["tokens_per_s"]
    return {setting: sorted(of_setting.items()) for setting, of_setting in points.items()}


def draw(rows: Rows, title: str) -> Any:
    """Tokens per second over the size of the pool: a panel for each prompt length, a line for each setting."""
    import matplotlib.pyplot as plt

    from evals.report.figure import legend_label

    lengths = sorted({row["length"] for row in rows})
    ticks = _ticks(rows)
    figure, axes = plt.subplots(
        1, len(lengths), figsize=(4.4 * len(lengths), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, length in zip(axes.flat, lengths, strict=True):
        for number, (setting, points) in enumerate(lines(rows, length).items()):
            (line,) = axis.plot(
                *zip(*points, strict=True), marker="osD^v<>Pph*X"[number % 12], label=legend_label(setting)
            )
            axis.plot(*points[0], marker="o", markersize=11, fillstyle="none", color=line.get_color())
            _spread(axis, rows, setting, length, line.get_color())
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
    """The pools, and halves of the largest down to the smallest that holds one sequence of some setting."""
    ticks = {float(row["pool_mb"]) for row in rows}
    tick = max(ticks)
    while tick > min(row["sequence_bytes"] / 1e6 for row in rows):
        ticks.add(tick)
        tick /= 2
    return sorted(ticks)


def _spread(axis: Any, rows: Rows, setting: str, length: int, color: str) -> None:
    """Bars of what 95 % of the decode steps give."""
    for row in rows:
        if (row["setting"], row["length"]) == (setting, length) and row["sequences"]:
            axis.vlines(row["pool_mb"], *row["tokens_per_s_spread"], color=color, alpha=0.5, linewidth=1)
