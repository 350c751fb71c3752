"""A frame as CSV that a spreadsheet takes for text and numbers, never for formulas."""

from typing import TYPE_CHECKING, Any

import numpy as np

from evals.console import visible

if TYPE_CHECKING:
    from pandas import DataFrame

FORMULAS = ("=", "@", "+", "-", "\t", "\r", "\n", "＝", "＠", "＋", "－")
"""What begins a formula, or is left out by a spreadsheet that then finds one."""


def csv_text(frame: "DataFrame") -> str:
    """`frame` as CSV without its index; texts that would begin a formula begin with an apostrophe, numbers stay."""
    shown = frame.rename(columns=_inert)
    for name in shown.select_dtypes(exclude=["number", "bool"]):
        shown[name] = np.array([*map(_inert, shown[name]), None], dtype=object)[:-1]
    return shown.to_csv(index=False)


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A carriage return would end the line for whoever reads the file.
    return ("'" if value.startswith(FORMULAS) else "") + visible(value)
