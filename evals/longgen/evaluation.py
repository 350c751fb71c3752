"""Long answers: make prompts of a text and a request for a long answer, and score the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compresskv.chat import question_start
from compresskv.engine.decode import Stopping
from compresskv.inputs import fingerprint
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.haystack import Haystack, essays, evaluated_and_held_out
from evals.job import Sample, refuse_too_long
from evals.longgen.config import Longgen
from evals.longgen.prompts import CONTENT, Request, repeated, requests

STRIDE = 20_000
"""Distance in characters between the contexts of consecutive prompts."""

JOINED = "\n\n"
"""Separator between context and request."""


def make_tasks(model: LoadedModel, config: Longgen, protocol: EvaluationProtocol) -> "list[LonggenTask]":
    """Return one task with all requests."""
    return [LonggenTask(config, model, protocol)]


@dataclass(frozen=True)
class LonggenTask:
    """All requests under one protocol. Sample ids are `<kind>-<number>`, numbers from 0 as in prompts.yaml."""

    config: Longgen
    model: LoadedModel
    protocol: EvaluationProtocol

    @property
    def name(self) -> str:
        return "answers"

    @cached_property
    def numbered(self) -> Mapping[str, tuple[int, Request]]:
        """Number and request of every sample, by sample id."""
        found = enumerate(requests(self.config.prompts))
        return {f"{request.kind}-{number}": (number, request) for number, request in found}

    @property
    def sample_ids(self) -> Sequence[str]:
        return list(self.numbered)

    @cached_property
    def longest_prompt(self) -> int:
        return max(self.sample(id).ids.numel() for id in self.sample_ids)

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens

    @cached_property
    def haystack(self) -> Haystack:
        """The text that contexts are cut from, without the texts held out for calibrations."""
        return Haystack("\n".join(evaluated_and_held_out(essays(self.config.haystack))[0]))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "requests": fingerprint(CONTENT),
            "context": self.config.context,
            **({"haystack": self.haystack.fingerprint} if self.config.context else {}),
            "max_new_tokens": self.max_new_tokens,
            "chat_template": self.model.chat_template,
        }

    def sample(self, id: str) -> Sample:
        number, request = self.numbered[id]
        before = self._context(number)
        question = f"{JOINED if before else ''}{request.request}"
        text = self.model.chat(before + question)
        ids = self.model.encode(text)
        new, fix = self.max_new_tokens, "choose fewer, or a smaller eval.context"
        refuse_too_long(self.model, ids.numel(), new, "eval.max_new_tokens", fix, value=new)
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(self.max_new_tokens, self.model.stop_ids, settings=settings)
        record = {"kind": request.kind, "prompt_tokens": ids.numel(), "truncated": False}
        context = question_start(text, question, ids.tolist(), self.model.tokenizer) if before else 0

        def scored(answer: str) -> dict[str, float]:
            return {"score": request.score(answer), "repeated_8grams": repeated(answer)}

        return Sample(id, ids, stopping, scored, record, context=context)

    def _context(self, number: int) -> str:
        """Return the text before a request. If the haystack is short, later prompts start again from its beginning."""
        if not self.config.context:
            return ""
        text = self.haystack.text
        start = STRIDE * number % max(len(text) - self.config.context, 1)
        return text[start : start + self.config.context]
