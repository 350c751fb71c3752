"""Shared parts of RULER's generators: fitting text to a length, and samples in the format of RULER's files.

Every generator draws from one seeded stream: first to find how many units of its haystack fit, then for each sample in
turn. A sample therefore depends on all random calls before it, and samples must be made in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from compresskv.errors import UserError
from evals.ruler.tasks import Task

TRIES = 100
"""Number of texts of the smallest size to try before a length is refused. RULER would try forever."""

SHORT = 4096
"""Lengths below this use other steps and other few-shot examples."""


@dataclass(frozen=True)
class Request:
    """A request to a generator: texts of at most `length` tokens, including the answer.

    `folder`: folder of RULER's files, if any. `template_tokens`: tokens of the length reserved for the chat format
    (RULER's `model_template_token`). `one_line`: whether to remove line breaks and tabs (`remove_newline_tab`).
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    length: int
    seed: int
    folder: Path | None = None
    template_tokens: int = 0
    one_line: bool = False

    def tokens(self, text: str) -> int:
        """Count the tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @property
    def limit(self) -> int:
        """Maximum tokens of a text and its answer."""
        return self.length - self.template_tokens

    @property
    def wording(self) -> str:
        """Template of a whole prompt, including the answer prefix."""
        return self.task.template + self.task.answer_prefix

    def size(self, text: str) -> int:
        """Return the number of tokens of a text and its answer."""
        return self.tokens(text) + self.task.max_new_tokens

    def too_short(self) -> UserError:
        return UserError("eval.lengths", "choose a larger length", value=self.length, why="no prompt of this task fits")


@dataclass(frozen=True)
class Text:
    """A whole prompt. `question`: its last part, from the question on. `outputs`: the answers."""

    whole: str
    question: str
    outputs: list[str]

    @property
    def flat(self) -> "Text":
        """The text with all white space replaced by single spaces."""
        return Text(" ".join(self.whole.split()), " ".join(self.question.split()), self.outputs)


@dataclass(frozen=True)
class Drawn:
    """A sample.

    `question`: start of the question in `input`, in characters. `position`: for needles, number of tokens of the input
    before the first answer; None for other tasks.
    """

    index: int
    input: str
    outputs: list[str]
    length: int
    length_with_template: int
    answer_prefix: str
    question: int
    position: int | None = None

    @property
    def line(self) -> dict[str, Any]:
        """The sample as a line of RULER's files."""
        fields = {
            "index": self.index,
            "input": self.input,
            "outputs": self.outputs,
            "length": self.length,
            "length_w_model_temp": self.length_with_template,
            "answer_prefix": self.answer_prefix,
        }
        return fields if self.position is None else {**fields, "token_position_answer": self.position}


def filled(wording: str, context: str, outputs: list[str], **asked: Any) -> Text:
    """Fill a prompt template with a context. The question begins after the white space that follows the context."""
    before, _, after = wording.partition("{context}")
    after = after.format(**asked)
    return Text(before.format(**asked) + context + after, after.lstrip(), outputs)


def most_units(
    request: Request, step: int, draw: Callable[[int], Text], extra: int = 0, highest: int | None = None
) -> int:
    """Find how many units fit in addition to `extra` tokens, by bisection from `step` to `highest`; `step` if none
    fits.

    The default of `highest` is three times the number estimated from a text of `step` units.
    """
    if highest is None:
        per_unit = request.tokens(draw(step).whole) / step
        highest = int(request.limit / per_unit * 3)
    low, high, most = step, max(highest, 2 * step), step
    while low <= high:
        units = (low + high) // 2
        if request.size(draw(units).whole) + extra <= request.limit:
            low, most = units + 1, units
        else:
            high = units - 1
    return most


def fitting(request: Request, units: int, step: int, draw: Callable[[int], Text]) -> tuple[Text, int]:
    """Draw a text that fits; returns it and the number of tokens of the text and its answer.

    Each time `draw(units)` does not fit, `units` is reduced by `step`, as long as more than `step` remain.
    """
    tries = 0
    while tries < TRIES:
        try:
            text = draw(units)
        except UserError:
            raise
        except ValueError:  # too few units for the random places; RULER also tries again
            size = request.limit + 1
        else:
            size = request.size(text.whole)
        if size <= request.limit:
            return text, size
        if units > step:
            units -= step
        else:
            tries += 1
    raise request.too_short()


def finished(request: Request, index: int, text: Text, length: int) -> Drawn:
    """Make the sample of a text, with the answer prefix split off from its input."""
    if request.one_line:
        text = text.flat
    # RULER also searches for the first ten characters.
    cut = text.whole.rfind(request.task.answer_prefix[:10])
    return Drawn(
        index=index,
        input=text.whole[:cut],
        outputs=text.outputs,
        length=length,
        length_with_template=length + request.template_tokens,
        answer_prefix=text.whole[cut:],
        question=len(text.whole) - len(text.question),
    )


def all_fitting(request: Request, units: int, step: int, draw: Callable[[int, int], Text]) -> Iterator[Drawn]:
    """Yield samples endlessly; `draw(index, units)` makes the text of each."""
    for index in count():
        yield finished(request, index, *fitting(request, units, step, partial(draw, index)))
