"""Load the requests of prompts.yaml, and score answers to them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

CONTENT = Path(__file__).with_name("prompts.yaml").read_bytes()

NUMBER = re.compile(r"(?:(?<![\w)\]])-)?\d[\d,]*(?:\.\d+)?")  # the hyphen in 57-20 is not a sign
ITEM = re.compile(r"^\W*(\d{1,9})[.):]", re.MULTILINE)

N = 8
"""Number of words in an n-gram."""


@dataclass(frozen=True)
class Request:
    """A `request` of a `kind`. Stories have `words` to use, lists a number of `items`, and arithmetic an `answer`."""

    kind: Literal["story", "list", "arithmetic"]
    request: str
    words: tuple[str, ...] = ()
    items: int = 0
    answer: int | None = None

    def score(self, text: str) -> float:
        """Score an answer, 0 to 100.

        Arithmetic: 100 if the last number in `text` is the answer, else 0. List: share of the item numbers that begin a
        line and are followed by a full stop, colon or bracket. Story: share of the words that occur in `text`, ignoring
        case, including as the beginning of a longer word.
        """
        if self.answer is not None:
            return 100.0 * (last_number(text) == self.answer)
        if self.items:
            return 100.0 * len({int(found) for found in ITEM.findall(text)} & {*range(1, self.items + 1)}) / self.items
        return 100.0 * sum(bool(re.search(rf"\b{word}", text, re.IGNORECASE)) for word in self.words) / len(self.words)


def last_number(text: str) -> float | None:
    """Return the last number in `text`, without commas between its digits; None if the text has no number."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def repeated(text: str) -> float:
    """Return the share (%) of 8-grams of words that occurred earlier in `text`; 0 for fewer than 8 words."""
    words = text.split()
    grams = [tuple(words[place : place + N]) for place in range(len(words) - N + 1)]
    return 100 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def requests(count: int) -> Sequence[Request]:
    """Return the first `count` requests; the kinds alternate."""
    return _all()[:count]


@cache
def _all() -> tuple[Request, ...]:
    nodes = yaml.safe_load(CONTENT)
    return tuple(Request(**node | {"words": tuple(node.get("words", ()))}) for node in nodes)
