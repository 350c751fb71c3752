"""Prompts for detecting retrieval heads: a needle in a haystack, with the exact position of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml
from torch import Tensor

from compresskv.chat import question_start
from compresskv.models import LoadedModel
from evals.haystack import Haystack, evaluated_and_held_out, hide


@dataclass(frozen=True)
class Needle:
    """A detection needle. `answer`: the span of `needle` that heads must find. `sort`: "copy" or "reason"."""

    sort: str
    name: str
    needle: str
    question: str
    answer_prefix: str
    answer: str


@dataclass(frozen=True)
class Trial:
    """One prompt: a needle at a depth (0 to 1) of a prompt of about `length` tokens."""

    needle: Needle
    length: int
    depth: float

    @property
    def id(self) -> str:
        return f"{self.needle.name}-L{self.length}-D{round(100 * self.depth)}"


def needles() -> list[Needle]:
    """Load the detection needles: first the needles of sort "copy", then the others."""
    text = files("evals.calibration").joinpath("detection_needles.yaml").read_text()
    return [Needle(sort, **entry) for sort, entries in yaml.safe_load(text).items() for entry in entries]


def last_texts(texts: Sequence[str], longest: int) -> Haystack:
    """Return the last of `texts`, enough for a prompt of `longest` tokens; the held-out texts if any are held out."""
    chosen: list[str] = []
    for text in reversed(evaluated_and_held_out(texts)[1] or texts):
        chosen.insert(0, text)
        if sum(map(len, chosen)) > 6 * longest:
            break
    return Haystack("\n".join(chosen))


def answered(model: LoadedModel, tokens: Sequence[int]) -> bool:
    """Return whether an answer is complete: it ends with an end token, or a newline follows text in its first line."""
    text = model.tokenizer.decode(tokens)
    return tokens[-1] in model.stop_ids or ("\n" in text and bool(text.split("\n")[0].strip()))


def make_prompt(model: LoadedModel, cell: Trial, haystack: Haystack) -> tuple[Tensor, range, int]:
    """Return the ids of a prompt [about `cell.length`], the positions of its answer, and where its question starts."""
    needle = cell.needle
    question = f"\n\nBased on the content of the book, Question: {needle.question}"
    text = f"\n{needle.needle}\n"
    overhead = model.encode(model.chat(text + question, needle.answer_prefix)).numel()
    hidden = hide(text, haystack.text, cell.length - overhead, cell.depth, model.tokenizer)
    rendered = model.chat(hidden.text + question, needle.answer_prefix)
    start = rendered.index(needle.needle) + needle.needle.index(needle.answer)
    end = start + len(needle.answer)
    ids = model.encode(rendered)
    offsets = model.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    shift = ids.numel() - len(offsets)  # special tokens in front
    inside = [i + shift for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    context = question_start(rendered, question, ids.tolist(), model.tokenizer, needle.answer_prefix)
    return ids, range(inside[0], inside[-1] + 1), context
