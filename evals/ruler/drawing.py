"""What RULER's generators share: how much text fits, and a sample as its files have it.

Every generator draws from one seeded stream: first to find how many units of its haystack fit, then sample by sample.
So a sample depends on all random calls before it, and samples are made in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from compresskv.errors import UserError

TRIES = 100
"""How many texts of the least size are drawn before a length is refused. RULER would try without end."""

SHORT = 4096
"""Lengths below this have other steps and other few-shot examples."""


@dataclass(frozen=True)
class Request:
    """What a generator is asked for: texts of at most `length` tokens, counted by `tokens`, answer included.

    `template_tokens` of the length are left to the chat format (RULER's `model_template_token`). `one_line`: whether
    texts lose their line breaks and tabs (`remove_newline_tab`). `folder`: where files of RULER are, None for none.
    """

    tokens: Callable[[str], int]
    length: int
    seed: int
    new_tokens: int
    template: str
    answer_prefix: str
    template_tokens: int = 0
    one_line: bool = False
    folder: Path | None = None

    @property
    def limit(self) -> int:
        """Tokens of a text and its answer."""
        return self.length - self.template_tokens

    @property
    def wording(self) -> str:
        """The template of a whole prompt, the opening of the answer included."""
        return self.template + self.answer_prefix

    def size(self, text: str) -> int:
        """Tokens of a text and its answer."""
        return self.tokens(text) + self.new_tokens

    def too_short(self) -> UserError:
        return UserError("eval.lengths", "choose a longer one", value=self.length, why="no prompt of the task fits")


@dataclass(frozen=True)
class Text:
    """A whole prompt; `question` is its end from the question on, and `outputs` are the answers."""

    whole: str
    question: str
    outputs: list[str]

    @property
    def flat(self) -> "Text":
        """Without line breaks and tabs, and with single spaces."""
        return Text(" ".join(self.whole.split()), " ".join(self.question.split()), self.outputs)


@dataclass(frozen=True)
class Drawn:
    """A sample. `question`: where its question begins, in characters of `input`; `position`: the tokens of the input
    before the first answer, for needles; None for other tasks.
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
        """The line of RULER's own file."""
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
    """The prompt around a context; the question begins behind the white space after it."""
    before, _, after = wording.partition("{context}")
    after = after.format(**asked)
    return Text(before.format(**asked) + context + after, after.lstrip(), outputs)


def most_units(request: Request, step: int, highest: int, size: Callable[[int], int]) -> int:
    """How many units fit into the limit, by bisection from `step` to `highest`; `step` where none is found to.

    `size(units)` draws a text, and gives its tokens with those of its answer.
    """
    low, high, most = step, max(highest, 2 * step), step
    while low <= high:
        units = (low + high) // 2
        if size(units) <= request.limit:
            low, most = units + 1, units
        else:
            high = units - 1
    return most


def fitting(request: Request, units: int, step: int, draw: Callable[[int], Text]) -> tuple[Text, int]:
    """A text that fits, and its tokens with those of its answer.

    Each text of `draw(units)` that does not fit takes `step` units away while there are more. Raises `UserError` where
    none fits.
    """
    tries = 0
    while tries < TRIES:
        try:
            text = draw(units)
        except UserError:
            raise
        except ValueError:  # more places are drawn than there are units; RULER, too, tries again
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
    """The sample of a text, without the opening of the answer in its input."""
    if request.one_line:
        text = text.flat
    # RULER, too, looks for the first ten characters.
    cut = text.whole.rfind(request.answer_prefix[:10])
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
    """Samples without end; `draw(index, units)` makes the text of one."""
    for index in count():
        yield finished(request, index, *fitting(request, units, step, partial(draw, index)))
