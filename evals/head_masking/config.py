"""Settings of head masking (`conf/eval/head_masking.yaml`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from compresskv.checking import Ge, Le, MinLen
from evals.evaluation import MeasuredEvaluation
from evals.niah.config import NeedleGrid

if TYPE_CHECKING:
    from compresskv.models import LoadedModel
    from evals.job import Job
    from evals.progress import Progress
    from evals.running.plan import Work


@dataclass(frozen=True)
class HeadMasking(NeedleGrid, MeasuredEvaluation):
    """On the needles of a `NeedleGrid`, the best heads of each of `rankings` are masked, and `draws` random choices.

    `masked`: how many of 1,024 heads, as the paper's models have; scaled to the heads of the model, at least 1.
    """

    rankings: Annotated[tuple[Literal["semantic", "traditional"], ...], MinLen(1)]
    masked: Annotated[tuple[Annotated[int, Ge(0), Le(1024)], ...], MinLen(1)]
    draws: Annotated[int, Ge(0), Le(1000)]

    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        from evals.head_masking.evaluation import run

        return run(model, self, jobs, progress)

    def plan(self, model: LoadedModel, jobs: Sequence[Job]) -> Sequence[Work]:
        from evals.head_masking.evaluation import works

        return works(model, self, jobs)
