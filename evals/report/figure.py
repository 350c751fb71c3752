"""Writing a figure in the formats that papers and pages take."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.text import Text

from evals.console import visible
from evals.results.store import write_bytes

METADATA: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""By suffix. Without dates, equal results give equal files."""


def save(figure: Any, stem: Path, suffixes: Iterable[str] = METADATA) -> list[Path]:
    """Write `figure` to `stem` with each of the `suffixes`, and close it; returns the paths.

    Raises `UserError` if the disk refuses one; each file is written whole or not at all.
    """
    paths = []
    try:
        _take_literally(figure)
        with matplotlib.rc_context({"svg.hashsalt": stem.name}):
            # The layout, which takes longest, is made once for all formats.
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
    """The `label` of what a legend names: matplotlib leaves out labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _take_literally(figure: Any) -> None:
    """Show names as they are: dollars in them are no formula, control characters no commands."""
    numbers = set()  # at the axes, which matplotlib may write as formulas
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            numbers.update([axis.offsetText, *axis.get_ticklabels(), *axis.get_ticklabels(minor=True)])
    for text in set(figure.findobj(Text)) - numbers:
        text.set_parse_math(False)
        text.set_text(visible(text.get_text()))
