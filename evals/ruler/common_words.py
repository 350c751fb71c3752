"""Common words: an example, then a numbered list. Ten words of the list occur more often than the other words.

It makes the same random calls as scripts/data/synthetic/common_words_extraction.py of NVIDIA/RULER c3f5e3b.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from evals.ruler.drawing import SHORT, Drawn, Request, Text, all_fitting, filled, most_units
from evals.ruler.words import all_words, more_words

STEP = 10
MEASURED = 4096
"""Number of words in the list used to estimate the size of a word."""


def generate(request: Request, common_repeats: int, other_repeats: int, common: int) -> Iterator[Drawn]:
    """Yield samples endlessly, each after an example."""
    words = list(all_words())
    Random(request.seed).shuffle(words)
    if request.length < SHORT:
        example, repeats = (20, 3, 1), (6, 1)
    else:
        example, repeats = (40, 10, 3), (common_repeats, other_repeats)
    lists = _Lists(request, Random(request.seed), words, common, example, repeats)
    per_word = request.tokens(lists.text(MEASURED).whole) / MEASURED
    count = most_units(request, STEP, lists.text, highest=int(request.limit // per_word) * 2)
    yield from all_fitting(request, count, STEP, lambda _, count: lists.text(count))


@dataclass(frozen=True)
class _Lists:
    """The stream of texts.

    `example`: number of different words, and how often common and other words repeat; `repeats`: as in the prompt.
    """

    request: Request
    random: Random
    words: list[str]
    common: int
    example: tuple[int, int, int]
    repeats: tuple[int, int]

    def text(self, count: int) -> Text:
        """Return a prompt with `count` different words, after the example."""
        shown, answer = self._list(*self.example)
        context, outputs = self._list(count, *self.repeats)
        example = f"{filled(self.request.wording, shown, answer).whole} {numbered(answer)}"
        text = filled(self.request.wording, context, outputs)
        return replace(text, whole=f"{example}\n{text.whole}")

    def _list(self, count: int, common_repeats: int, other_repeats: int) -> tuple[str, list[str]]:
        """Return a numbered list, and its common words."""
        words = self.words if count <= len(self.words) else more_words(self.request.folder, self.request.length)
        drawn = self.random.sample(words, count)
        common, others = drawn[: self.common], drawn[self.common :]
        listed = common * common_repeats + others * other_repeats
        Random(self.request.seed).shuffle(listed)
        return numbered(listed), common


def numbered(words: Sequence[str]) -> str:
    """Return `1. one 2. two`, the format of lists and their answers."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
