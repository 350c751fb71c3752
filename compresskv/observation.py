"""The observation window: the last tokens of a prompt, whose attention scores the tokens before them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from compresskv.checking import AfterValidator, Ge, Le


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("choose an odd number, so that pooling has a middle")
    return kernel


Kernel = Annotated[int, Ge(1), Le(65_535), AfterValidator(_odd)]
"""Tokens per pooling window."""


@dataclass(frozen=True)
class ObservationConfig:
    """Observation settings (`conf/config.yaml: observation`). The paper uses the same for every method (App. B).

    `window`: tokens at the end of the prompt, which are always kept. Scores are pooled in 1-D (`pooling`) over `kernel`
    positions.
    """

    window: Annotated[int, Ge(1), Le(65_536)] = 8
    kernel: Kernel = 5
    pooling: Literal["average", "max"] = "average"
