"""Needle in a haystack: a prompt for every length and depth, and the score of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from compresskv.engine.decode import Stopping
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.evaluation import Sample
from evals.haystack import Haystack, Hidden, essays, evaluated_and_held_out, hide
from evals.niah import released
from evals.niah.config import Niah
from evals.rouge import rouge1_recall

QUESTION = "Based on the content of the book, Question: {question}"
CHAT = "This is a very long story book: <book> {context} </book>.\n" + QUESTION


@dataclass(frozen=True)
class NiahTask:
    """All cells of the grid under one protocol. Sample ids are `L<length>-D<depth>-N0`."""

    config: Niah
    model: LoadedModel
    protocol: EvaluationProtocol

    def __post_init__(self) -> None:
        for length in self.config.lengths:
            if length + self.config.max_new_tokens > self.model.window:
                raise UserError(
                    f"eval.lengths: a prompt of {length} tokens and {self.config.max_new_tokens} new ones exceed the "
                    f"{self.model.window}-token window of {self.model.name}: choose shorter lengths"
                )

    @property
    def name(self) -> str:
        return "needle"

    @cached_property
    def haystack(self) -> Haystack:
        """All texts, which identify the task."""
        return Haystack("\n".join(essays(self.config.haystack)))

    @cached_property
    def book(self) -> str:
        """What prompts are cut from: the texts without those that are held out for calibrations."""
        return "\n".join(evaluated_and_held_out(essays(self.config.haystack))[0])

    @property
    def cells(self) -> dict[str, tuple[int, float]]:
        """Length (tokens) and depth (per cent) of every sample, by its id."""
        cells = {}
        for length in self.config.lengths:
            for depth in self.config.depth_list:
                cells[f"L{length}-D{depth:g}-N0"] = length, depth
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

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        names = ("needle", "question", "answer", "answer_prefix", "max_new_tokens")
        fields = {name: getattr(self.config, name) for name in names}
        quirks = {name: getattr(self.protocol, name) for name in vars(self.protocol) if name.startswith("niah_")}
        return {
            **fields,
            **quirks,
            "haystack": self.haystack.fingerprint,
            "chat_template": self.model.chat_template,
        }

    def sample(self, id: str) -> Sample:
        length, depth = self.cells[id]
        ids, hidden = self.hidden(length, depth / 100)
        record = {
            "length": length,
            "depth": float(depth),
            "prompt_tokens": ids.numel(),
            "actual_depth": round(100 * hidden.depth, 2),
            "needle_behind": hidden.rule,
            "misplaced": hidden.misplaced,
            "haystack_repeats": hidden.repeats,
            "truncated": False,
        }
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(self.config.max_new_tokens, self.model.stop_ids, settings=settings)
        return Sample(id, ids, stopping, self.score, record, self.config.answer)

    def prompt(self, length: int, depth: float) -> torch.Tensor:
        """A prompt of at most `length` tokens with the needle at `depth` (0 to 1): ids [prompt], int64."""
        return self.hidden(length, depth)[0]

    def hidden(self, length: int, depth: float) -> tuple[torch.Tensor, Hidden]:
        """The same prompt, and where in the haystack its needle is."""
        needle = f"\n{self.config.needle}\n"
        tokens = length - self.overhead(needle)
        for _ in range(8):
            hidden = self.hide(needle, tokens, depth)
            ids = self.render(hidden.text)
            if ids.numel() <= length:
                return ids, hidden
            # Where texts are joined, tokens may split otherwise than in the parts.
            tokens -= ids.numel() - length
        raise UserError(f"eval.lengths={length}: no prompt of that length can be made: choose a longer one")

    def overhead(self, needle: str) -> int:
        """Tokens of a prompt's length that are not for the haystack."""
        if self.protocol.niah_prompt == "raw":
            special = self.protocol.niah_special_tokens == "leaked"
            return released.RESERVED + len(self.model.tokenizer(needle, add_special_tokens=special).input_ids)
        return self.render(needle).numel()

    def hide(self, needle: str, tokens: int, depth: float) -> Hidden:
        """`tokens` tokens of haystack with the needle in them, as the protocol has it."""
        where = (needle, self.book, tokens, depth, self.model.tokenizer)
        if (self.protocol.niah_special_tokens, self.protocol.niah_sentence_rule) == ("none", "text"):
            return hide(*where)
        return released.hide(*where, self.protocol)

    def render(self, context: str) -> torch.Tensor:
        """The whole prompt: ids [prompt]."""
        if self.protocol.niah_prompt == "raw":
            text = released.RAW.format(context=context, question=self.config.question)
            return torch.tensor(self.model.tokenizer(text).input_ids, device=self.model.device)
        prompt = CHAT.format(context=context, question=self.config.question)
        return self.model.encode(self.model.chat(prompt, self.config.answer_prefix))

    def score(self, prediction: str) -> dict[str, float]:
        """ROUGE-1 recall (stemmed) of the generated text against the answer and the needle, and keyword overlap."""
        return {
            "score": 100 * rouge1_recall(self.config.answer, prediction),
            "score_needle": 100 * rouge1_recall(self.config.needle, prediction),
            "score_keywords": keyword_overlap(self.config.answer, prediction),
        }

    def first_prompt(self) -> int:
        return self.sample(self.sample_ids[0]).ids.numel()


def keyword_overlap(answer: str, prediction: str) -> float:
    """Per cent of the answer's distinct words that the prediction has, punctuation attached, as the released plots."""
    expected = set(answer.lower().split())
    return 100 * len(set(prediction.lower().split()) & expected) / len(expected)
