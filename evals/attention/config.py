"""Settings of the attention of single heads (`conf/eval/attention.yaml`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from compresskv.checking import Ge, Le
from evals.evaluation import MeasuredEvaluation
from evals.niah.config import NeedleGrid

if TYPE_CHECKING:
    from compresskv.models import LoadedModel
    from evals.job import Job
    from evals.progress import Progress


@dataclass(frozen=True)
class Attention(NeedleGrid, MeasuredEvaluation):
    """On each needle of a `NeedleGrid`, the attention of `heads` heads of each kind over the prompt.

    Of all heads, the streaming ones attend most to both the first `sinks` and the last `recent` tokens.
    """

    heads: Annotated[int, Ge(1), Le(100)]
    sinks: Annotated[int, Ge(1), Le(1000)]
    recent: Annotated[int, Ge(1), Le(100_000)]

    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        from evals.attention.evaluation import run

        return run(model, self, jobs, progress)
