"""HeadKV (Fu et al. 2024, arXiv 2410.19258): heads that retrieve, measured once per model, keep more tokens.

Every head gets a small part of the budget; a pool of the rest is shared in proportion to the heads' scores. The scores
are of query heads, the cache of KV heads: a KV head's capacity is the mean over its query heads, and its tokens are
selected as SnapKV does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from compresskv.apportion import largest_remainder
from compresskv.checking import Ge, Gt, Le
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape

HeadScores = tuple[tuple[float, ...], ...]
"""[layer][query head]."""

KINDS = {"retrieval": "traditional", "retrieval_reasoning": "retrieval_reasoning", "semantic": "semantic"}
"""HeadKV-R, HeadKV-R2 and CompressKV's head scores, by their names in a calibration."""


@dataclass(frozen=True)
class HeadKVAllocator:
    """Capacities of KV heads from calibrated `head_scores`; 1 / `beta` of the budget goes into the shared pool.

    Scores are normalised, raised to the power `temp`, and normalised again. `exact`: apportioned to the total;
    otherwise each capacity is rounded, and what a head cannot use is lost.
    """

    head_scores: HeadScores
    beta: float = 1.01
    temp: float = 1.0
    exact: bool = True

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[tuple[int, ...]]:
        base = budget - shape.window
        real = real_capacities(self.head_scores, base, self.beta, self.temp)
        whole = apportioned(real, base, shape.kv_heads, shape.past) if self.exact else rounded(real, shape.kv_heads)
        return list(whole[: len(scores)])


def pool_and_minimum(base: int, beta: float) -> tuple[int, int]:
    """What a head with `base` past tokens gives to the pool, and what it keeps for itself."""
    given = int(base // beta)
    return given, base - given


@lru_cache(maxsize=256)
def real_capacities(head_scores: HeadScores, base: int, beta: float, temp: float) -> HeadScores:
    """Past tokens of each query head before rounding; their mean is `base`."""
    given, minimum = pool_and_minimum(base, beta)
    shares = _normalised([score for layer in head_scores for score in layer])
    shares = _normalised([share**temp for share in shares])
    heads = len(head_scores[0])
    capacities = [share * given * len(shares) + minimum for share in shares]
    return tuple(tuple(capacities[start : start + heads]) for start in range(0, len(capacities), heads))


def _normalised(scores: list[float]) -> list[float]:
    """Scores that sum to 1; equal ones where all are zero."""
    total = sum(scores)
    return [score / total for score in scores] if total > 0 else [1 / len(scores)] * len(scores)


@lru_cache(maxsize=256)
def apportioned(capacities: HeadScores, base: int, kv_heads: int, cap: int) -> tuple[tuple[int, ...], ...]:
    """Whole capacities of KV heads that sum to layers · kv_heads · `base`, none above `cap` past tokens."""
    means = [sum(group) / len(group) for layer in capacities for group in _groups(layer, kv_heads)]
    whole = largest_remainder(means, len(means) * base, [cap] * len(means))
    return tuple(tuple(whole[start : start + kv_heads]) for start in range(0, len(whole), kv_heads))


@lru_cache(maxsize=256)
def rounded(capacities: HeadScores, kv_heads: int) -> tuple[tuple[int, ...], ...]:
    """Each query head's capacity rounded half to even, as released; then the mean over the group, rounded again."""
    return tuple(
        tuple(round(sum(map(round, group)) / len(group)) for group in _groups(layer, kv_heads)) for layer in capacities
    )


def _groups(layer: Sequence[float], kv_heads: int) -> list[Sequence[float]]:
    """The query heads kG … kG+G−1 of each KV head k."""
    size = len(layer) // kv_heads
    return [layer[start : start + size] for start in range(0, len(layer), size)]


def allocator(
    context: Context,
    *,
    head_scores: Literal["retrieval", "retrieval_reasoning", "semantic"],
    beta: Annotated[float, Ge(1), Le(1e6)],
    temp: Annotated[float, Gt(0), Le(100)],
) -> HeadKVAllocator:
    """`head_scores` of the calibration, raised to `temp`, share a pool of 1 / `beta` of the budget.

    Raises `UserError` for a calibration that lacks the scores.
    """
    calibration = context.calibrated()
    kind = calibration.kind_of_scores(KINDS[head_scores], context.protocol)
    return HeadKVAllocator(calibration.scores(kind), beta, temp, context.protocol.exact_budget)
