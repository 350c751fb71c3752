"""The paper's figure 8: end-to-end latency and peak memory by context length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from evals.report.figure import legend_label, save

PANELS = (
    ("total_s", "latency, end to end (s)", 1.0),
    ("decode_ms", "decode (ms a token)", 1.0),
    ("cache_bytes", "KV cache (MB)", 1e-6),
    ("peak_bytes", "peak memory (MB)", 1e-6),
)


def draw(rows: Sequence[dict[str, Any]], title: str, stem: Path) -> list[Path]:
    """One line a setting over context length, written to `stem` + .png and .svg; returns the two paths."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.6), layout="constrained")
    for axis, (field, label, scale) in zip(axes, PANELS, strict=True):
        for number, name in enumerate(dict.fromkeys(row["setting"] for row in rows)):
            mine = [row for row in rows if row["setting"] == name and row[field] is not None]
            # Markers tell lines apart in grey, too.
            axis.plot(
                [row["length"] for row in mine],
                [row[field] * scale for row in mine],
                marker="osD^v<>Pph*X"[number % 12],
                label=legend_label(name),
            )
        axis.set_xlabel("context length (tokens)")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    return save(figure, stem, (".png", ".svg"))
