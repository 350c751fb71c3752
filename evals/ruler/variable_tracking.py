"""Variable tracking: a chain of assignments among repeated sentences, after an example with its answer.

It makes the same random calls as scripts/data/synthetic/variable_tracking.py of NVIDIA/RULER c3f5e3b.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from numpy.random import RandomState

from evals.ruler.drawing import SHORT, Drawn, Request, Text, all_fitting, filled, fitting, most_units
from evals.ruler.essays import NOISE

EXAMPLE_LENGTH = 500
"""Maximum tokens of the example, without its answer."""

EXAMPLE_VALUE = "12345"


def generate(request: Request, chains: int, hops: int) -> Iterator[Drawn]:
    """Yield samples endlessly, each after an example."""
    stream = _Chains(request, Random(request.seed), RandomState(request.seed), chains, hops)
    example = stream.example(replace(request, length=EXAMPLE_LENGTH, task=replace(request.task, max_new_tokens=0)))
    step = 10 if request.length >= SHORT else 5
    units = most_units(request, step, stream.text, extra=request.tokens(example))
    yield from all_fitting(request, units, step, lambda _, units: stream.behind(example, units))


@dataclass(frozen=True)
class _Chains:
    """The stream of texts."""

    request: Request
    random: Random
    numbers: RandomState
    chains: int
    hops: int

    def example(self, request: Request) -> str:
        """Return the example with its answer. Every sample replaces the names and the number in it."""
        step, draw = 5, partial(self.text, example=True)
        units = most_units(request, step, draw)
        text, _ = fitting(request, units, step, lambda units: draw(units).flat if request.one_line else draw(units))
        return f"{text.whole} {' '.join(text.outputs)}\n"

    def behind(self, example: str, units: int) -> Text:
        """Return the example with other names and another number, followed by a prompt."""
        text = self.text(units)
        text = replace(text, whole=f"{self._renamed(example)}\n{text.whole}")
        return text.flat if self.request.one_line else text

    def text(self, units: int, example: bool = False) -> Text:
        """Return a prompt with `units` repeated sentences around the assignments."""
        names, chains = self._assignments(example)
        lines = [NOISE] * units
        for chain in chains:
            places = sorted(self.random.sample(range(len(lines)), len(chain)))
            for before, (place, assignment) in enumerate(zip(places, chain, strict=True)):
                lines.insert(place + before, assignment)
        context = "\n".join(lines).replace(". \n", ".\n")
        value = chains[0][0].split("=")[-1].strip()
        return filled(self.request.wording, context, names[0], query=value, num_v=self.hops + 1)

    def _assignments(self, example: bool) -> tuple[list[list[str]], list[list[str]]]:
        """Return the names of each chain, and its assignments."""
        length, hops = (3, min(10, self.hops)) if example else (5, self.hops)
        drawn = [self._name(length) for _ in range((hops + 1) * self.chains)]
        while len(set(drawn)) < self.chains * (hops + 1):
            drawn.append(self._name(length))
        names, chains = [], []
        for start in range(0, len(drawn), hops + 1):
            of_chain = drawn[start : start + hops + 1]
            value = EXAMPLE_VALUE if example else str(self.numbers.randint(10000, 99999))
            further = [f"VAR {of_chain[hop + 1]} = VAR {of_chain[hop]} " for hop in range(hops)]
            names.append(of_chain)
            chains.append([f"VAR {of_chain[0]} = {value}", *further])
        return names, chains

    def _name(self, length: int) -> str:
        return "".join(self.random.choices(string.ascii_uppercase, k=length))

    def _renamed(self, example: str) -> str:
        for name in example.split()[-self.hops - 1 :]:
            example = example.replace(name, self._name(len(name)))
        return example.replace(EXAMPLE_VALUE, str(self.numbers.randint(10000, 99999)))
