"""Settings of the evaluation of long answers (`conf/eval/longgen.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from compresskv.checking import Ge, Le, MinLen, PathText
from evals.haystack import essays
from evals.job import SampledEvaluation

MOST = 24
"""Requests in prompts.yaml."""


@dataclass(frozen=True)
class Longgen(SampledEvaluation):
    """The first `prompts` requests, each after `context` characters of the `haystack`; answers of `max_new_tokens`."""

    prompts: Annotated[int, Ge(1), Le(MOST)]
    context: Annotated[int, Ge(0), Le(20_000)]
    haystack: PathText | Annotated[tuple[PathText, ...], MinLen(1)]
    max_new_tokens: Annotated[int, Ge(1), Le(100_000)]

    def check(self) -> None:
        if self.context:
            essays(self.haystack)
