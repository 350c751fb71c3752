"""Settings of the needle-in-a-haystack evaluation (`conf/eval/niah.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from compresskv.checking import Ge, Le, MinLen, PathText, Text
from compresskv.errors import UserError
from evals.haystack import essays
from evals.job import Evaluation, SampledEvaluation, Shown
from evals.rouge import sees

if TYPE_CHECKING:
    from evals.results.record import Record
    from evals.results.schema import Line

Tokens = Annotated[int, Ge(1), Le(100_000_000)]
Percent = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True)
class NeedleGrid(Evaluation):
    """`lengths` in tokens of the whole prompt; `depths` in per cent, or how many, evenly spaced from 0 to 100.

    Each cell of them is asked `needles` times: with `needle`, then with the others of needles.yaml from the second on.
    Several `haystack`s are one text, in their order.
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
                raise UserError(f"eval.{name}", "write a sentence", value=text, why="there is no word in it")
        if not sees(self.answer):
            raise UserError(
                "eval.answer",
                "write the answer in them",
                value=self.answer,
                why="its score, ROUGE-1 recall, counts the letters a to z and digits alone",
            )

    def check(self) -> None:
        essays(self.haystack)

    @property
    def depth_list(self) -> tuple[float, ...]:
        """Depths in per cent."""
        if isinstance(self.depths, int):
            return tuple(np.linspace(0, 100, self.depths).round().tolist()) if self.depths > 1 else (50.0,)
        return self.depths


@dataclass(frozen=True)
class Niah(NeedleGrid, SampledEvaluation):
    """Whether the model still finds the needles after eviction."""

    @classmethod
    def show(cls, title: str, records: Mapping[str, Sequence[Record]], figure: Path) -> Shown:
        """A table with the mean score by prompt length, and a figure of all heatmaps."""
        from evals.niah.heatmap import draw, panels
        from evals.report.terminal import score_table
        from evals.results.record import covered_lines

        table = score_table(title, records, lambda line: f"{line['length']}")
        table.caption = _caption(covered_lines(chain.from_iterable(records.values())))
        above = f"Needle in a haystack, {title.split(' · ')[0]}"
        return Shown([table], lambda: draw(panels(records), above, figure))


def _caption(lines: Sequence[Line]) -> str | None:
    """What a reader of the scores has to know of the prompts; None if they are as asked for."""
    prompts = {line["id"]: line for line in lines}
    cells = {(line["length"], line["depth"]) for line in prompts.values()}
    notes = []
    if len(prompts) > len(cells):
        needles = {id.rpartition("-")[2] for id in prompts}
        notes.append(f"{len(prompts)} prompts in {len(cells)} cells, each the mean of up to {len(needles)} needles")
    if misplaced := sum(bool(line.get("misplaced")) for line in prompts.values()):
        notes.append(f"in {misplaced} of {len(prompts)} prompts the needle is more than 2 % from the depth asked for")
    if repeated := sum(bool(line.get("haystack_repeats")) for line in prompts.values()):
        notes.append(f"in {repeated} of {len(prompts)} prompts the haystack is repeated")
    return "; ".join(notes) or None
