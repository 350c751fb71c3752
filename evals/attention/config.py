"""Settings of the evaluation that records the attention of single heads (`conf/eval/attention.yaml`)."""

from dataclasses import dataclass
from typing import Annotated

from compresskv.checking import Ge, Le
from evals.job import MeasuredEvaluation
from evals.niah.config import NeedleGrid


@dataclass(frozen=True)
class Attention(NeedleGrid, MeasuredEvaluation):
    """Record `heads` heads of each kind; streaming heads attend most to the first `sinks` and last `recent` tokens."""

    heads: Annotated[int, Ge(1), Le(100)]
    sinks: Annotated[int, Ge(1), Le(1000)]
    recent: Annotated[int, Ge(1), Le(100_000)]
