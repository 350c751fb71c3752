"""Needles: keys and values hidden in repeated sentences, in essays, or among other needles.

It makes the same random calls as scripts/data/synthetic/niah.py of NVIDIA/RULER c3f5e3b.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np

from evals.ruler.drawing import SHORT, Drawn, Request, Text, all_fitting, filled, most_units
from evals.ruler.essays import NOISE, essay, sentences
from evals.ruler.words import keys as key_words

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = np.round(np.linspace(0, 100, num=40)).astype(int).tolist()
"""Needle depths, in per cent of the sentences of an essay."""

Kind = Literal["words", "numbers", "uuids"]


def generate(
    request: Request,
    haystack: Literal["noise", "essay", "needle"],
    key: Kind,
    value: Kind,
    keys: int,
    values: int,
    queries: int,
) -> Iterator[Drawn]:
    """Yield samples endlessly, with `keys` keys of `values` values each; each sample asks for `queries` keys."""
    hidden = _Needles(request, Random(request.seed), haystack, key, value, max(keys, queries), values, queries)
    step = 500 if haystack == "essay" else 25 if request.length >= SHORT else 5
    units = most_units(request, step, hidden.text)
    for sample in all_fitting(request, units, step, lambda _, units: hidden.text(units)):
        # RULER stores the position of the answer in the field `index`.
        place = sample.input.find(sample.outputs[0])
        yield replace(sample, index=place, position=request.tokens(sample.input[:place]))


@dataclass(frozen=True)
class _Needles:
    """The stream of texts of one task."""

    request: Request
    random: Random
    haystack: Literal["noise", "essay", "needle"]
    key: Kind
    value: Kind
    keys: int
    values: int
    queries: int

    def text(self, units: int) -> Text:
        """Return a prompt with a haystack of `units` lines, or words of an essay."""
        keys, values = [], []
        for _ in range(self.keys):
            keys.append(self._drawn(self.key))
            values.append([self._drawn(self.value) for _ in range(self.values)])
        needles = [self._needle(key, value) for key, of_key in zip(keys, values, strict=True) for value in of_key]
        Random(self.request.seed).shuffle(needles)
        context = self._in_essay(units, needles) if self.haystack == "essay" else self._in_lines(units, needles)
        asked = self.random.sample(range(self.keys), self.queries)
        answers = [value for place in asked for value in values[place]]
        names = [keys[place] for place in asked]
        wording, kind = self.request.wording, str(self.value)
        if self.queries * self.values == 1:
            for several, one in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
                wording = wording.replace(several, one)
            kind = kind[:-1]
        return filled(wording, context, answers, type_needle_v=kind, query=listed(names))

    def _drawn(self, kind: Kind) -> str:
        if kind == "numbers":
            return str(self.random.randint(1_000_000, 9_999_999))
        if kind == "words":
            return self.random.choice(key_words())
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value, key=key, value=value)

    def _in_essay(self, words: int, needles: list[str]) -> str:
        """Return the first `words` words of the essays, with the needles between sentences."""
        parts = sentences(essay(words))
        places = sorted(int(len(parts) * (depth / 100)) for depth in self.random.sample(DEPTHS, len(needles)))
        pieces, begin = [], 0
        for place, needle in zip(places, needles, strict=True):
            pieces += [" ".join(parts[begin:place]), needle]
            begin = place
        return " ".join([*pieces, " ".join(parts[begin:])])

    def _in_lines(self, count: int, needles: list[str]) -> str:
        """Return the needles among `count` lines, which repeat the same sentences or are other needles."""
        if self.haystack == "noise":
            lines = [NOISE] * count
        else:
            lines = [self._needle(self._drawn(self.key), self._drawn(self.value)) for _ in range(count)]
        places = sorted(self.random.sample(range(count), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def listed(names: Sequence[str]) -> str:
    """Join names as in `one, two, and three`."""
    return f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]
