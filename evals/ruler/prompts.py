"""Render a sample in the model's chat format, and its answer as the model would write it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compresskv.models import LoadedModel
from evals.ruler.common_words import numbered
from evals.ruler.drawing import Drawn
from evals.ruler.niah import listed


@dataclass(frozen=True)
class Prompt:
    """The text that the model receives. `question`: the part after the context, as kvpress splits RULER."""

    text: str
    question: str


def render(model: LoadedModel, sample: Drawn) -> Prompt:
    """Render the input as a user turn and the prefix as the start of the answer; without chat format, join them."""
    return Prompt(model.chat(sample.input, sample.answer_prefix), sample.input[sample.question :].strip())


ANSWERS: dict[str, Callable[[Sequence[str]], str]] = {
    "niah": listed,
    "variable_tracking": " ".join,
    "common_words_extraction": numbered,
    "freq_words_extraction": listed,
    "qa": lambda outputs: outputs[0],
}
"""Functions that write the answer of each family, in the format of its example if it has one."""
