"""HeadKV (Fu et al. 2024, arXiv 2410.19258): heads that retrieve, measured once per model, keep more tokens.

Every head gets a small part of the budget. The rest forms a pool that is shared in proportion to the heads' scores.
Scores belong to query heads and the cache to KV heads, so the share of a KV head is the sum over its query heads. Its
tokens are selected as in SnapKV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Annotated, Literal

import torch

from baselines.adakv import head_observation
from baselines.snapkv import Grouping, SnapKVScorer
from compresskv.apportion import largest_remainder
from compresskv.checking import Ge, Gt, Le
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape

HeadScores = tuple[tuple[float, ...], ...]
"""Scores as [layer][query head]."""

KINDS = {"retrieval": "traditional", "retrieval_reasoning": "retrieval_reasoning", "semantic": "semantic"}
"""Head scores of HeadKV-R, HeadKV-R2 and CompressKV, mapped to their names in a calibration."""


@dataclass(frozen=True)
class HeadKVAllocator:
    """Allocates to KV heads by calibrated `head_scores`. 1 / `beta` of the budget goes into the shared pool.

    Scores are normalised, raised to the power `temp`, and normalised again. A KV head gets the scores of the query
    heads that `grouping` assigns to it. `exact`: capacities are apportioned to the total. If false, each capacity is
    rounded, and tokens that a head cannot use are lost.
    """

    head_scores: HeadScores
    beta: float = 1.2
    temp: float = 1.0
    exact: bool = True
    grouping: Grouping = "contiguous"

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[tuple[int, ...]]:
        base = budget - shape.window
        given, minimum = pool_and_minimum(base, self.beta)
        shares = kv_head_shares(self.head_scores, self.temp, shape.kv_heads, self.grouping)
        whole = apportioned(shares, given, minimum, shape.past) if self.exact else rounded(shares, given, minimum)
        return list(whole[: len(scores)])


def pool_and_minimum(base: int, beta: float) -> tuple[int, int]:
    """Return how many of its `base` past tokens a head gives to the pool, and how many it keeps for itself."""
    given = int(base // beta)
    return given, base - given


@lru_cache(maxsize=256)
def kv_head_shares(head_scores: HeadScores, temp: float, kv_heads: int, grouping: Grouping) -> HeadScores:
    """Return each KV head's share of the pool, [layer][KV head]. The shares of all KV heads sum to 1."""
    shares = _normalised(list(chain.from_iterable(head_scores)))
    powers = [share**temp for share in shares]
    if not any(powers):  # all powers underflow to zero
        powers = [(share / max(shares)) ** temp for share in shares]
    shares = _normalised(powers)
    by_layer = torch.tensor(shares, dtype=torch.float64).view(len(head_scores), -1)
    if grouping == "strided":
        grouped = by_layer.unflatten(1, (-1, kv_heads)).sum(1)
    else:
        grouped = by_layer.unflatten(1, (kv_heads, -1)).sum(2)
    return tuple(map(tuple, grouped.tolist()))


def _normalised(scores: list[float]) -> list[float]:
    """Normalise scores to sum 1. If all are zero, the results are equal."""
    total = sum(scores)
    return [score / total for score in scores] if total > 0 else [1 / len(scores)] * len(scores)


@lru_cache(maxsize=256)
def apportioned(shares: HeadScores, given: int, minimum: int, cap: int) -> tuple[tuple[int, ...], ...]:
    """Return capacities that sum to layers · kv_heads · (`given` + `minimum`), at most `cap`; ties to lower heads."""
    kv_heads = len(shares[0])
    heads = len(shares) * kv_heads
    real = [share * given * heads + minimum for share in chain.from_iterable(shares)]
    whole = largest_remainder(real, heads * (given + minimum), [cap] * heads)
    return tuple(tuple(whole[start : start + kv_heads]) for start in range(0, heads, kv_heads))


@lru_cache(maxsize=256)
def rounded(shares: HeadScores, given: int, minimum: int) -> tuple[tuple[int, ...], ...]:
    """Return each capacity rounded half to even, in float32 as released."""
    exact = torch.tensor(shares, dtype=torch.float32)
    whole = (exact * (given * exact.numel()) + minimum).round()
    return tuple(map(tuple, whole.int().tolist()))


def scorer(context: Context, *, grouping: Grouping | None) -> SnapKVScorer:
    """Build SnapKV's scorer. `grouping` None: the protocol's grouping."""
    return SnapKVScorer(head_observation(context), grouping or context.protocol.gqa_grouping)


def allocator(
    context: Context,
    *,
    head_scores: Literal["retrieval", "retrieval_reasoning", "semantic"],
    beta: Annotated[float, Ge(1), Le(1e6)],
    temp: Annotated[float, Gt(0), Le(100)],
    grouping: Grouping | None,
) -> HeadKVAllocator:
    """Build the allocator: calibrated `head_scores`, raised to `temp`, share a pool of 1 / `beta` of the budget.

    `grouping` None: the protocol's grouping. Raises `UserError` if the calibration lacks the scores.
    """
    calibration = context.calibrated()
    kind = calibration.kind_of_scores(KINDS[head_scores], context.protocol)
    usual = context.protocol.gqa_grouping
    return HeadKVAllocator(calibration.scores(kind), beta, temp, context.protocol.exact_budget, grouping or usual)
