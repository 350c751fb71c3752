"""Settings of the long-answer evaluation (`conf/eval/longgen.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from compresskv.checking import Ge, Le, MinLen, PathText
from evals.haystack import essays
from evals.job import SampledEvaluation

MOST = 24
"""Number of requests in prompts.yaml."""


@dataclass(frozen=True)
class Longgen(SampledEvaluation):
    """Settings of long answers.

    `prompts`: number of requests to use. `context`: characters of the `haystack` before each request. `max_new_tokens`:
    maximum tokens of an answer.
    """

    prompts: Annotated[int, Ge(1), Le(MOST)]
    context: Annotated[int, Ge(0), Le(20_000)]
    haystack: PathText | Annotated[tuple[PathText, ...], MinLen(1)]
    max_new_tokens: Annotated[int, Ge(1), Le(100_000)]

    def check(self) -> None:
        if self.context:
            essays(self.haystack)
