"""CompressKV's allocator: layers that suffer more from eviction get more of the budget (paper §3.3, Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from compresskv.apportion import largest_remainder
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape
from compresskv.selecting_heads import share_of_the_paper

FLOOR = 24
"""Past tokens that every layer keeps. With the window of 8, these are the paper's 32 tokens per layer."""


@dataclass(frozen=True)
class LayerErrorAllocator:
    """Allocates by `layer_scores`, the shares of the calibrated error. `exact`: no token of the budget goes unused."""

    layer_scores: tuple[float, ...]
    exact: bool = True

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        floor = shape.window + FLOOR
        total = budget * len(self.layer_scores)
        if self.exact:
            floor = min(floor, budget)
        budgets: Sequence[int] = layer_budgets(self.layer_scores, total, floor, 3 * budget)
        if self.exact:
            budgets = tuple(redistribute(budgets, self.layer_scores, shape.length))
        return [layer - shape.window for layer in budgets[: len(scores)]]


@lru_cache(maxsize=1024)
def layer_budgets(layer_scores: tuple[float, ...], total: int, floor: int, cap: int) -> tuple[int, ...]:
    """Return the tokens of each layer, including the window, between `floor` and `cap`. They sum to `total`.

    Each layer gets its floor and a rounded share of the rest. The rounding difference is distributed round-robin, one
    token per layer, by descending score (ascending if tokens must be taken back), as in the released code. If they
    conflict, a floor takes precedence over the total, and the cap over the floor, as in numpy's clip.
    """
    spare = total - len(layer_scores) * floor
    budgets = [min(max(floor + round(score * spare), floor), cap) for score in layer_scores]
    best_first = sorted(range(len(budgets)), key=lambda i: -layer_scores[i])
    difference = total - sum(budgets)
    while difference:
        step = 1 if difference > 0 else -1
        moved = False
        for i in best_first if step > 0 else sorted(best_first, key=lambda i: layer_scores[i]):
            if difference and floor <= budgets[i] + step <= cap:
                budgets[i] += step
                difference -= step
                moved = True
        if not moved:
            break
    return tuple(budgets)


def redistribute(budgets: Sequence[int], layer_scores: Sequence[float], length: int) -> list[int]:
    """Move tokens beyond the prompt's `length` from their layers to the other layers, in proportion to their scores."""
    capped = [min(layer, length) for layer in budgets]
    surplus = sum(budgets) - sum(capped)
    room = [length - layer for layer in capped]
    return [a + b for a, b in zip(capped, largest_remainder(layer_scores, surplus, room), strict=True)]


def allocator(context: Context) -> LayerErrorAllocator:
    """Build the allocator from the errors measured with the scorer's number of selecting heads.

    Other scorers use the errors for the paper's share of heads.
    """
    heads = context.selecting_heads or share_of_the_paper(context.q_heads)
    return LayerErrorAllocator(context.calibrated().layer_scores_with(heads), context.protocol.exact_budget)
