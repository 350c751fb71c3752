"""Needle in a haystack: make a prompt for every length, depth and needle, and score its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from compresskv.engine.decode import Stopping
from compresskv.inputs import fingerprint
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.haystack import Haystack, essays, evaluated_and_held_out
from evals.job import Sample, refuse_too_long
from evals.metrics.rouge1 import rouge1_recall
from evals.niah import needles, released
from evals.niah.config import NeedleGrid
from evals.niah.needles import Needle
from evals.niah.prompts import NeedlePrompts


def make_tasks(model: LoadedModel, config: NeedleGrid, protocol: EvaluationProtocol) -> "list[NiahTask]":
    """Return one task with the whole grid."""
    return [NiahTask(config, model, protocol)]


@dataclass(frozen=True)
class GridCell:
    """One prompt: a needle at a `depth` (per cent) in a prompt of `length` tokens."""

    length: int
    depth: float
    needle: Needle


@dataclass(frozen=True)
class NiahTask:
    """All prompts of the grid under one protocol. Sample ids are `L<length>-D<depth>-N<needle>`, needles from 0."""

    config: NeedleGrid
    model: LoadedModel
    protocol: EvaluationProtocol

    def __post_init__(self) -> None:
        for length in self.config.lengths:
            fix = "choose shorter lengths"
            refuse_too_long(self.model, length, self.max_new_tokens, "eval.lengths", fix, value=length)

    @property
    def name(self) -> str:
        return "needle"

    @cached_property
    def texts(self) -> Sequence[str]:
        return essays(self.config.haystack)

    @cached_property
    def haystack(self) -> Haystack:
        """All texts; their fingerprint is part of the task's identity."""
        return Haystack("\n".join(self.texts))

    @property
    def book(self) -> Haystack:
        """The text that prompts are cut from, without the texts held out for calibrations."""
        return Haystack("\n".join(evaluated_and_held_out(self.texts)[0]))

    @cached_property
    def needles(self) -> Sequence[Needle]:
        """The needle of the configuration, then the other needles of needles.yaml."""
        config = self.config
        first = Needle("configured", config.needle, config.question, config.answer, config.answer_prefix)
        return [first, *needles.needles(config.needles)[1:]]

    @cached_property
    def prompts(self) -> NeedlePrompts:
        return NeedlePrompts(self.model, self.protocol, self.book, self.protocol.niah_sentence_rule, raw=released.RAW)

    @cached_property
    def cells(self) -> dict[str, GridCell]:
        """Every grid cell by its sample id."""
        cells = {}
        for length in self.config.lengths:
            for depth in self.config.depth_list:
                for number, needle in enumerate(self.needles):
                    cells[f"L{length}-D{depth:g}-N{number}"] = GridCell(length, depth, needle)
        return cells

    @property
    def sample_ids(self) -> Sequence[str]:
        return list(self.cells)

    @property
    def longest_prompt(self) -> int:
        return max(self.config.lengths)

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens

    @property
    def identity(self) -> Mapping[str, Any]:
        names = ("needle", "question", "answer", "answer_prefix", "max_new_tokens")
        fields = {name: getattr(self.config, name) for name in names}
        quirks = {name: getattr(self.protocol, name) for name in vars(self.protocol) if name.startswith("niah_")}
        return {
            **fields,
            **quirks,
            "haystack": self.haystack.fingerprint,
            "chat_template": self.model.chat_template,
            # Hash all needles, so that a run with more needles extends one with fewer.
            **({"needles": fingerprint(needles.CONTENT)} if self.config.needles > 1 else {}),
        }

    def sample(self, id: str) -> Sample:
        cell = self.cells[id]
        ids, hidden, context = self.prompts.make(cell.needle, cell.length, cell.depth / 100)
        record = {
            "length": cell.length,
            "depth": float(cell.depth),
            "prompt_tokens": ids.numel(),
            "actual_depth": round(100 * hidden.depth, 2),
            "needle_behind": hidden.rule,
            "misplaced": hidden.misplaced,
            "haystack_repeats": hidden.repeats,
            "truncated": False,
        }
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(self.max_new_tokens, self.model.stop_ids, settings=settings)
        return Sample(id, ids, stopping, partial(scores, cell.needle), record, cell.needle.answer, context)

    def prompt(self, length: int, depth: float) -> torch.Tensor:
        """Return a prompt of at most `length` tokens with the first needle at `depth` (0 to 1): ids [prompt], int64."""
        return self.prompts.make(self.needles[0], length, depth)[0]


def scores(needle: Needle, prediction: str) -> dict[str, float]:
    """Return stemmed ROUGE-1 recall of the prediction against answer and needle, and its keyword overlap."""
    return {
        "score": 100 * rouge1_recall(needle.answer, prediction),
        "score_needle": 100 * rouge1_recall(needle.needle, prediction),
        "score_keywords": keyword_overlap(needle.answer, prediction),
    }


def keyword_overlap(answer: str, prediction: str) -> float:
    """Return the share (%) of the answer's words, with punctuation, in the prediction, as in the released plots."""
    expected = set(answer.lower().split())
    return 100 * len(set(prediction.lower().split()) & expected) / len(expected)
