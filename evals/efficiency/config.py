"""Settings of the efficiency measurement (`conf/eval/efficiency.yaml`)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from compresskv.checking import Ge, Le, MinLen, PathText
from evals.haystack import essays
from evals.job import MeasuredEvaluation

Megabytes = Annotated[int, Ge(1), Le(100_000_000)]
Tokens = Annotated[int, Ge(1), Le(100_000_000)]


@dataclass(frozen=True)
class Efficiency(MeasuredEvaluation):
    """Settings of the measurement.

    `lengths` and `new_tokens`: tokens. `rounds`: number of rounds; each measures all settings in turn. `pools`: MB of
    10⁶ bytes. `output_lengths`: new tokens of each sequence in the pools; `new_tokens` if empty.
    """

    haystack: PathText
    lengths: Annotated[tuple[Tokens, ...], MinLen(1)]
    new_tokens: Annotated[int, Ge(2), Le(100_000_000)]
    rounds: Annotated[int, Ge(1), Le(100_000)]
    pools: tuple[Megabytes, ...]
    output_lengths: tuple[Annotated[int, Ge(2), Le(100_000_000)], ...] = ()

    alone: ClassVar[bool] = True
    evicts: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    @property
    def outputs(self) -> tuple[int, ...]:
        """New tokens of each sequence in the pools, in one run after another."""
        return self.output_lengths or (self.new_tokens,)

    def check(self) -> None:
        essays(self.haystack)
