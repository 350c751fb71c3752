"""AdaKV (Feng et al. 2024, arXiv 2407.11550), with SnapKV's scores: heads of a layer compete for its budget.

A layer's heads share what the layer may keep: the best scores of all its heads together decide how many tokens each
head gets, and a part `alpha` of the budget is set aside so that no head starves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Annotated

import torch

from baselines.snapkv import SnapKVScorer
from compresskv.apportion import largest_remainder
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape


@dataclass(frozen=True)
class AdaKVAllocator:
    """Every layer has the same budget; its KV heads share it by how many of the layer's best scores are theirs.

    `alpha` of it, 0 to 1, is shared equally. `exact`: no token is lost to rounding.
    """

    alpha: float = 0.2
    exact: bool = True

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[tuple[int, ...]]:
        base = budget - shape.window
        split = apportioned if self.exact else rounded
        return [split(winners(layer, base), base, self.alpha) for layer in scores]


def winners(layer: LayerScores, base: int) -> tuple[int, ...]:
    """How many of the layer's kv_heads · `base` best scores belong to each KV head."""
    heads = layer.scores.shape[0]
    return tuple(torch.bincount(layer.best_heads[: heads * base], minlength=heads).tolist())


@lru_cache(maxsize=4096)
def apportioned(winners: tuple[int, ...], base: int, alpha: float) -> tuple[int, ...]:
    """Past tokens of each KV head, by largest remainder; they sum to kv_heads · `base`."""
    equal = Fraction(str(alpha))
    shares = [won * (1 - equal) + base * equal for won in winners]
    total = len(winners) * base
    return tuple(largest_remainder(shares, total, [total] * len(winners)))


@lru_cache(maxsize=4096)
def rounded(winners: tuple[int, ...], base: int, alpha: float) -> tuple[int, ...]:
    """Past tokens of each KV head as released: rounded half to even, which loses or adds a few."""
    return tuple(round(won * (1 - alpha) + int(base * alpha)) for won in winners)


def scorer(context: Context) -> SnapKVScorer:
    """SnapKV's scores, always from a KV head's own query heads; the official code pools by maximum over 7."""
    observation = context.scoring
    if context.protocol.head_pooling == "official":
        observation = replace(observation, kernel=7, pooling="max")
    return SnapKVScorer(observation)


def allocator(context: Context, *, alpha: Annotated[float, Ge(0), Le(1)]) -> AdaKVAllocator:
    """`alpha`: the part of the budget that is shared equally."""
    return AdaKVAllocator(alpha, context.protocol.exact_budget)
