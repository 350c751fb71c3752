"""Settings of the needle-in-a-haystack evaluation (`conf/eval/niah.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from compresskv.checking import Ge, Le, MinLen, PathText, Text
from compresskv.errors import UserError
from evals.haystack import essays
from evals.job import Evaluation, SampledEvaluation
from evals.metrics.rouge1 import sees

Tokens = Annotated[int, Ge(1), Le(100_000_000)]
Percent = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True)
class NeedleGrid(Evaluation):
    """A grid of needle prompts.

    `lengths`: tokens of the whole prompt. `depths`: in per cent, or their number, evenly spaced from 0 to 100.
    `needles`: number of prompts for each length and depth; the first prompt uses `needle`, the next prompts use
    needles.yaml from its second entry on. Several `haystack`s are joined in order.
    """

    needle: Annotated[Text, MinLen(1)]
    question: Annotated[Text, MinLen(1)]
    answer: Annotated[Text, MinLen(1)]
    answer_prefix: Text
    needles: Annotated[int, Ge(1), Le(10)]
    haystack: PathText | Annotated[tuple[PathText, ...], MinLen(1)]
    lengths: Annotated[tuple[Tokens, ...], MinLen(1)]
    depths: Annotated[int, Ge(1), Le(1000)] | Annotated[tuple[Percent, ...], MinLen(1)]
    max_new_tokens: Annotated[int, Ge(1), Le(100_000)]

    def __post_init__(self) -> None:
        for name in ("needle", "question"):
            if not any(map(str.isalnum, text := getattr(self, name))):
                raise UserError(f"eval.{name}", "write a sentence", value=text, why="it has no words")
        if not sees(self.answer):
            raise UserError(
                "eval.answer",
                "write the answer in them",
                value=self.answer,
                why="its score, ROUGE-1 recall, counts only the letters a to z and digits",
            )

    def check(self) -> None:
        essays(self.haystack)

    @property
    def depth_list(self) -> tuple[float, ...]:
        """Needle depths in per cent."""
        if isinstance(self.depths, int):
            return tuple(np.linspace(0, 100, self.depths).round().tolist()) if self.depths > 1 else (50.0,)
        return self.depths


@dataclass(frozen=True)
class Niah(NeedleGrid, SampledEvaluation):
    """Settings of eval=niah: whether the model still finds the needles after eviction."""
