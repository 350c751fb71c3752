"""PyramidKV (Cai et al. 2024, arXiv 2406.02069): lower layers keep more tokens than higher layers, in an arithmetic
sequence.

Tokens within a layer are selected as in SnapKV. With beta = 20 the last layer gets a twentieth of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated

from compresskv.apportion import largest_remainder
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape


@dataclass(frozen=True)
class PyramidKVAllocator:
    """An arithmetic sequence of layer capacities whose mean is the budget. The last is the mean / `beta`.

    `schedule_length` (tokens): fixed prompt length for which the sequence is made; None uses the length of each prompt.
    `uniform_short`: prompts shorter than 2 · (budget − window) get the same capacity in every layer, since the first
    layers could not use more. `exact`: the sequence is apportioned to the total. If false, it decreases by a rounded
    step.
    """

    beta: float = 20
    schedule_length: int | None = None
    uniform_short: bool = True
    exact: bool = True

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        base = budget - shape.window
        length = self.schedule_length or shape.length
        past = max(length - shape.window, 0)
        # A single layer has no sequence: its capacity is the mean.
        if shape.layers == 1 or (self.uniform_short and length < 2 * base):
            return [base] * len(scores)
        if self.exact:
            return list(exact_schedule(base, past, shape.layers, self.beta, shape.past)[: len(scores)])
        return list(stepped_schedule(base, past, shape.layers, self.beta)[: len(scores)])


@lru_cache(maxsize=256)
def exact_schedule(base: int, past: int, layers: int, beta: float, cap: int) -> tuple[int, ...]:
    """Return the past tokens of each layer: the arithmetic sequence for `past` tokens, apportioned to layers · `base`.

    No layer gets more than `cap`, the past tokens of the prompt.
    """
    last = base / Fraction(str(beta))
    first = 2 * base - last
    if first >= past:
        first, last = Fraction(past), Fraction(2 * base - past)
    step = (first - last) / (layers - 1)
    sequence = [max(first - layer * step, Fraction(0)) for layer in range(layers)]
    return tuple(largest_remainder(sequence, layers * base, [cap] * layers))


@lru_cache(maxsize=256)
def stepped_schedule(base: int, past: int, layers: int, beta: float) -> tuple[int, ...]:
    """Return the past tokens of each layer as in the released code, where all divisions, and the step, round down.

    The total exceeds layers · `base` (by 11.7 % for 32 layers and a budget of 64).
    """
    last = int(base // beta)
    first = 2 * base - last
    if first >= past:
        first, last = past, 2 * base - past
    step = (first - last) // (layers - 1)
    return tuple(max(first - layer * step, 0) for layer in range(layers))


def allocator(context: Context, *, beta: Annotated[float, Ge(1), Le(1e6)]) -> PyramidKVAllocator:
    """Build the allocator. `beta`: ratio of the mean capacity to the capacity of the last layer, which is at most the
    mean.

    A prompt that belongs to no task is its own first prompt.
    """
    protocol = context.protocol
    return PyramidKVAllocator(
        beta=beta,
        schedule_length=context.first_prompt if protocol.pyramid_schedule == "first_prompt" else None,
        uniform_short=protocol.pyramid_short_prompt == "uniform",
        exact=protocol.exact_budget,
    )
