"""Settings of the efficiency measurement (`conf/eval/efficiency.yaml`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from compresskv.checking import Ge, Le, MinLen, PathText
from evals.evaluation import MeasuredEvaluation

if TYPE_CHECKING:
    from compresskv.models import LoadedModel
    from evals.job import Job
    from evals.progress import Progress

Megabytes = Annotated[int, Ge(1), Le(100_000_000)]
Tokens = Annotated[int, Ge(1), Le(100_000_000)]


@dataclass(frozen=True)
class Efficiency(MeasuredEvaluation):
    """`lengths` and `new_tokens` in tokens, `rounds` of all settings in turn, `pools` in MB of 10⁶ bytes."""

    haystack: PathText
    lengths: Annotated[tuple[Tokens, ...], MinLen(1)]
    new_tokens: Annotated[int, Ge(2), Le(100_000_000)]
    rounds: Annotated[int, Ge(1), Le(100_000)]
    pools: tuple[Megabytes, ...]

    alone: ClassVar[bool] = True
    evicts: ClassVar[bool] = True

    def check(self) -> None:
        from evals.haystack import essays

        essays(self.haystack)

    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        from evals.efficiency.evaluation import run

        return run(model, self, jobs, progress)
