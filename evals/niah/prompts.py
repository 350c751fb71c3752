"""Make needle prompts: a book with a needle in it and a question about it, worded as the protocol requires."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, tensor

from compresskv.chat import question_start
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.haystack import Haystack, Hidden, hide
from evals.niah import released
from evals.niah.needles import Needle

QUESTION = "Based on the content of the book, Question: {question}"
CHAT = "This is a very long story book: <book> {context} </book>.\n" + QUESTION


@dataclass(frozen=True)
class NeedlePrompts:
    """Makes the prompts of one model under one protocol.

    `sentence_rule`: the protocol's rule for this evaluation (`niah_sentence_rule` or `masking_sentence_rule`). `raw`:
    template of the whole prompt under `niah_prompt=raw`, with placeholders for context and question.
    """

    model: LoadedModel
    protocol: EvaluationProtocol
    haystack: Haystack
    sentence_rule: Literal["text", "period_ids", "llama2_ids"]
    raw: str

    def make(self, needle: Needle, length: int, depth: float) -> tuple[Tensor, Hidden, int]:
        """Make a prompt of at most `length` tokens with the needle at `depth` (0 to 1).

        Returns the token ids [prompt], int64, where the needle is hidden, and the number of ids before the question.
        """
        text, raw = f"\n{needle.needle}\n", self.protocol.niah_prompt == "raw"
        leaked = self.protocol.niah_special_tokens == "leaked"
        if raw:
            around = released.RESERVED + len(self.model.tokenizer(text, add_special_tokens=leaked).input_ids)
        else:
            around = self._render(needle, text)[1].numel()
        tokens = length - around
        for _ in range(8):
            where = (text, self.haystack.text, tokens, depth, self.model.tokenizer)
            if (self.protocol.niah_special_tokens, self.sentence_rule) == ("none", "text"):
                hidden = hide(*where)
            else:
                hidden = released.hide(*where, leaked, self.sentence_rule, self.protocol.decode_cleanup)
            text_of_prompt, ids = self._render(needle, hidden.text)
            if ids.numel() <= length:
                question = self._template.partition("{context}")[2].format(question=needle.question)
                prefix = "" if raw else needle.answer_prefix
                context = question_start(text_of_prompt, question, ids.tolist(), self.model.tokenizer, prefix)
                return ids, hidden, context
            # Where texts are joined, tokens may split differently than in the parts.
            tokens -= ids.numel() - length
        raise UserError(
            "eval.lengths", "choose a larger length", value=length, why="no prompt of this length can be made"
        )

    @property
    def _template(self) -> str:
        """Template of the prompt before any chat template, with placeholders for context and question."""
        return self.raw if self.protocol.niah_prompt == "raw" else CHAT

    def _render(self, needle: Needle, context: str) -> tuple[str, Tensor]:
        """Return the text of the whole prompt, and its ids [prompt]."""
        text = self._template.format(context=context, question=needle.question)
        if self.protocol.niah_prompt == "raw":
            return text, tensor(self.model.tokenizer(text).input_ids, device=self.model.device)
        text = self.model.chat(text, needle.answer_prefix)
        return text, self.model.encode(text)
