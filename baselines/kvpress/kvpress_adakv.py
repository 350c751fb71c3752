"""kvpress's AdaKV: the KV heads of a layer compete for its budget; every head gets a fixed part of the budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F

from baselines.kvpress.budgeted import given_scores, unmasked
from baselines.kvpress.installed import kvpress, kvpress_version
from baselines.kvpress.wrappers import SharingScores
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import LayerScores, PromptShape
from compresskv.methods import declares

kvpress_version()  # fail before a model is loaded

Shares = tuple[int, ...]

_found: WeakKeyDictionary[LayerScores, dict[tuple[Any, int], Shares]] = WeakKeyDictionary()
"""Cached results by layer: the allocator is called for each layer again after every later layer."""


@dataclass(frozen=True)
class KVPressAdaKVAllocator:
    """Gives each KV head the number of tokens that `AdaKVPress` leaves in it, with the scores of any scorer.

    The observation window gets the highest scores, as in kvpress, and its tokens are not counted in the result.
    """

    alpha_safeguard: float
    version: str

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[Shares]:
        return [self._shares(layer, shape, budget) for layer in scores]

    def _shares(self, layer: LayerScores, shape: PromptShape, budget: int) -> Shares:
        found = _found.setdefault(layer, {})
        if (self, budget) not in found and isinstance(layer, SharingScores):
            found[self, budget] = layer.shares(budget, self.alpha_safeguard)
        if (self, budget) not in found:
            if not layer.heads_differ:
                raise UserError(
                    "method.allocator",
                    "use method/allocator=uniform",
                    why="it compares the KV heads of a layer, but the scorer scores all of them alike",
                )
            contest = layer.scores if layer.contest is None else layer.contest
            if shape.window:
                contest = F.pad(contest, (0, shape.window), value=contest.max().item() + 1)
            press = kvpress().AdaKVPress(given_scores(contest), alpha_safeguard=self.alpha_safeguard)
            kept = unmasked(press, contest, budget)
            found[self, budget] = tuple(max(number - shape.window, 0) for number in kept.sum(1).tolist())
        return found[self, budget]


@declares(heads="compared")
def allocator(context: Context, *, alpha_safeguard: Annotated[float, Ge(0), Le(1)]) -> KVPressAdaKVAllocator:
    return KVPressAdaKVAllocator(alpha_safeguard, kvpress_version())
