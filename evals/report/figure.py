"""Writing a figure in the formats that papers and pages take."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

METADATA: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""By suffix. Without dates, equal results give equal files."""


def save(figure: Any, stem: Path) -> list[Path]:
    """Write `figure` to `stem` + .png, .svg and .pdf, and close it; returns the paths."""
    paths = [stem.with_name(stem.name + suffix) for suffix in METADATA]
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        for path in paths:
            figure.savefig(path, dpi=160, metadata=METADATA[path.suffix])
    plt.close(figure)
    return paths
