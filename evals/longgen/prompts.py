"""The requests of prompts.yaml, and what a good answer to each has."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

PATH = Path(__file__).with_name("prompts.yaml")

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ITEM = re.compile(r"^\W*(\d+)[.):]", re.MULTILINE)

N = 8
"""Words of an n-gram."""


@dataclass(frozen=True)
class Request:
    """A `request` of a `kind`. A story has `words`, a list a number of `items`, arithmetic an `answer`."""

    kind: Literal["story", "list", "arithmetic"]
    request: str
    words: tuple[str, ...] = ()
    items: int = 0
    answer: int | None = None

    def score(self, text: str) -> float:
        """0 to 100. Arithmetic: whether the last number of `text` is the answer, so 0 or 100.

        List: the share of the items whose number, before a full stop, colon or bracket, begins a line. Story: the share
        of the words that occur, in any case, also as the beginning of a longer word.
        """
        if self.answer is not None:
            return 100.0 * (last_number(text) == self.answer)
        if self.items:
            return 100.0 * len({int(found) for found in ITEM.findall(text)} & {*range(1, self.items + 1)}) / self.items
        return 100.0 * sum(bool(re.search(rf"\b{word}", text, re.IGNORECASE)) for word in self.words) / len(self.words)


def last_number(text: str) -> float | None:
    """The last number in `text`; commas between digits are left out. None without one."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def repeated(text: str) -> float:
    """Share of the 8-grams of words that occurred before in `text`, in per cent; 0 of fewer than 8 words."""
    words = text.split()
    grams = [tuple(words[place : place + N]) for place in range(len(words) - N + 1)]
    return 100 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def requests(count: int) -> Sequence[Request]:
    """The first `count` requests, the kinds in turn."""
    return _all()[:count]


def fingerprint() -> str:
    """A hash of all requests."""
    return hashlib.sha256(PATH.read_bytes()).hexdigest()[:16]


@cache
def _all() -> tuple[Request, ...]:
    nodes = yaml.safe_load(PATH.read_bytes())
    return tuple(Request(**node | {"words": tuple(node.get("words", ()))}) for node in nodes)
