"""Settings of head masking (`conf/eval/head_masking.yaml`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from compresskv.checking import Ge, Le, MinLen
from evals.job import MeasuredEvaluation
from evals.niah.config import NeedleGrid


@dataclass(frozen=True)
class HeadMasking(NeedleGrid, MeasuredEvaluation):
    """Mask the best heads of each of `rankings`, and `draws` random choices of heads, on the needles of a `NeedleGrid`.

    `masked`: numbers of masked heads of the paper's 1,024, scaled to the heads of the model (at least 1 unless 0).
    """

    rankings: Annotated[tuple[Literal["semantic", "traditional"], ...], MinLen(1)]
    masked: Annotated[tuple[Annotated[int, Ge(0), Le(1024)], ...], MinLen(1)]
    draws: Annotated[int, Ge(0), Le(1000)]
