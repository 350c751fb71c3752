"""Settings of a calibration (`conf/eval/calibrate.yaml`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from compresskv.checking import Ge, Le, MinLen, PathText
from compresskv.inputs import expanded
from evals.haystack import essays
from evals.job import MeasuredEvaluation
from evals.longbench.config import LongBench

Tokens = Annotated[int, Ge(1), Le(100_000_000)]
Percent = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True)
class Calibrate(MeasuredEvaluation):
    """Settings of a calibration.

    `source`: held_out (needles), or longbench, which measures layer errors on the first `limit` rows of each task in
    `data`, with at most `max_length` tokens of prompt and answer. `lengths`: prompt lengths in tokens; null: derived
    from the model's window. `depths`: in per cent, or their number, evenly spaced. `texts`: number of stretches of
    ordinary text for comparing `head_counts`, at both the shortest and the longest of `lengths`. `minimum_accepted`:
    number of prompts that the model must answer; half of all prompts suffice if there are fewer than twice this number.
    `output`: folder for the calibration file; null: the user's folder, which is searched before the calibrations of the
    package. `replace`: also replace a calibration that was made from more prompts.
    """

    asks: ClassVar[bool] = True

    source: Literal["held_out", "longbench"]
    data: PathText
    limit: Annotated[int, Ge(1), Le(1_000_000)] | None
    max_length: Annotated[int, Ge(2), Le(100_000_000)] | None
    haystack: PathText
    lengths: Annotated[tuple[Tokens, ...], MinLen(1)] | None
    depths: Annotated[int, Ge(1), Le(1000)] | Annotated[tuple[Percent, ...], MinLen(1)]
    max_steps: Annotated[int, Ge(2), Le(100_000)]
    texts: Annotated[int, Ge(0), Le(10_000)]
    head_counts: Annotated[tuple[Annotated[int, Ge(1), Le(100_000)], ...], MinLen(1)]
    minimum_accepted: Annotated[int, Ge(1), Le(1_000_000)]
    output: PathText | None
    replace: bool

    def grid(self, window: int) -> tuple[int, ...]:
        """Return the prompt lengths (tokens) for a model `window`: by default six, from 1000 to 50000 or to the window.

        The paper's authors use up to 50000 for Llama-3.1, and up to 31500 for Mistral, whose window is 32768.
        """
        if self.lengths is not None:
            return self.lengths
        longest = min(50_000, window - self.max_steps)
        return tuple(np.linspace(min(1000, longest), longest, 6).astype(int).tolist())

    @property
    def depth_list(self) -> tuple[float, ...]:
        """Needle depths, 0 to 1."""
        if isinstance(self.depths, int):
            return tuple(np.linspace(0, 1, self.depths).tolist())
        return tuple(depth / 100 for depth in self.depths)

    @property
    def folder(self) -> Path | None:
        """`output` as a path."""
        return None if self.output is None else expanded(self.output, "eval.output")

    @property
    def test_sets(self) -> LongBench:
        """The data of `source=longbench`."""
        return LongBench("longbench", self.data, "english", self.limit, self.max_length, None, None)

    def check(self) -> None:
        _ = self.folder
        if self.source == "longbench":
            self.test_sets.check()
        else:
            essays(self.haystack)
