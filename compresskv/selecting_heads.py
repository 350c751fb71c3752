"""The number of query heads per layer that select tokens for CompressKV and its variants."""

from typing import Annotated, Literal

from compresskv.calibration import Calibration
from compresskv.checking import Ge, Le

Heads = Annotated[int, Ge(1), Le(1024)] | Literal["calibrated", "all"] | None
"""Number of query heads per layer that select. None: the paper's share; calibrated: the calibration's choice."""


def share_of_the_paper(q_heads: int) -> int:
    """Return the paper's share of a layer's `q_heads`, 4 of 32 (§4.1), rounded half up, at least 1."""
    return max(1, (4 * q_heads + 16) // 32)


def count_heads(heads: Heads, calibration: Calibration, q_heads: int) -> int:
    """Return the number of selecting heads for the setting `heads` in a model with `q_heads` per layer."""
    match heads:
        case None:
            return share_of_the_paper(q_heads)
        case "calibrated":
            return calibration.heads
        case "all":
            return q_heads
        case _:
            return heads
