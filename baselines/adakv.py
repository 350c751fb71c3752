"""AdaKV (Feng et al. 2024, arXiv 2407.11550), with SnapKV's scores: the heads of a layer compete for its budget.

The best scores of all KV heads of a layer together decide how many tokens each head gets. A part `alpha` of the budget
is shared equally, so that every head keeps some tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Annotated

import torch

from baselines.snapkv import Grouping, SnapKVScorer
from compresskv.apportion import largest_remainder
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import Allocator, LayerPrefill, LayerScores, Observation, PromptShape, Scorer
from compresskv.methods import declares


@dataclass(frozen=True)
class ContestedScorer:
    """Ranks the tokens of each KV head with one scorer, and compares the heads of a layer with another scorer."""

    ranking: Scorer
    contest: Scorer

    @property
    def window(self) -> int:
        return self.ranking.window

    @property
    def selecting_heads(self) -> int | None:
        return getattr(self.ranking, "selecting_heads", None)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        return LayerScores(self.ranking(layer).scores, contest=self.contest(layer).scores)


@dataclass(frozen=True)
class AdaKVAllocator:
    """Shares the budget of a layer by how many of the layer's best scores each KV head has.

    The part `alpha`, 0 to 1, is shared equally. `layers` gives each layer its budget; None: all layers get the same.
    `exact`: the shares sum to the budget. If false, they are rounded, and the equal part is computed from the mean
    budget instead of the layer's budget.
    """

    alpha: float = 0.2
    exact: bool = True
    layers: Allocator | None = None

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[tuple[int, ...]]:
        base = budget - shape.window
        budgets = self.layers(scores, shape, budget) if self.layers else [base] * len(scores)
        capacities = []
        for layer, budget_of_layer in zip(scores, budgets, strict=True):
            if not layer.heads_differ:
                raise UserError(
                    "method.allocator",
                    "use method=adacompresskv for semantic heads, or method/allocator=uniform",
                    why="it compares the KV heads of a layer, but the scorer scores all of them alike",
                )
            assert isinstance(budget_of_layer, int)
            if budget_of_layer > shape.past:
                capacities.append((shape.past,) * shape.kv_heads)
            elif self.exact:
                capacities.append(apportioned(winners(layer, budget_of_layer), budget_of_layer, self.alpha))
            else:
                capacities.append(rounded(winners(layer, budget_of_layer), base, self.alpha))
        return capacities


def winners(layer: LayerScores, base: int) -> tuple[int, ...]:
    """Return how many of the layer's kv_heads · `base` best scores belong to each KV head."""
    heads = layer.scores.shape[0]
    return tuple(torch.bincount(layer.best_heads[: heads * base], minlength=heads).tolist())


@lru_cache(maxsize=4096)
def apportioned(winners: tuple[int, ...], base: int, alpha: float) -> tuple[int, ...]:
    """Return the past tokens of each KV head, by largest remainder. They sum to kv_heads · `base`."""
    equal = Fraction(str(alpha))
    shares = [won * (1 - equal) + base * equal for won in winners]
    total = len(winners) * base
    return tuple(largest_remainder(shares, total, [total] * len(winners)))


@lru_cache(maxsize=4096)
def rounded(winners: tuple[int, ...], base: int, alpha: float) -> tuple[int, ...]:
    """Return the past tokens of each KV head as released: rounded half to even, which loses or adds a few tokens."""
    return tuple(round(won * (1 - alpha) + int(base * alpha)) for won in winners)


def head_observation(context: Context) -> Observation:
    """Return the run's observation. `head_pooling=official` pools by maximum over 7, as AdaKV and HeadKV do."""
    if context.protocol.head_pooling == "official":
        return replace(context.scoring, kernel=7, pooling="max")
    return context.scoring


def scorer(
    context: Context, *, grouping: Grouping | None, contest_grouping: Grouping | None
) -> SnapKVScorer | ContestedScorer:
    """Build a scorer from SnapKV's scores.

    `grouping` is used to rank the tokens of a head, `contest_grouping` to compare heads. None: the protocol's grouping.
    """
    observation, usual = head_observation(context), context.protocol.gqa_grouping
    ranking = SnapKVScorer(observation, grouping or usual)
    contest = SnapKVScorer(observation, contest_grouping or usual)
    return ranking if ranking == contest else ContestedScorer(ranking, contest)


@declares(heads="compared")
def allocator(context: Context, *, alpha: Annotated[float, Ge(0), Le(1)]) -> AdaKVAllocator:
    """Build the allocator. `alpha`: the part of the budget that is shared equally."""
    return AdaKVAllocator(alpha, context.protocol.exact_budget)
