"""CAKE (Qin et al. 2025, arXiv 2503.12491): layers whose attention is dispersed and shifts get more of the budget.

A token's importance is the mean of the attention it receives plus gamma times its variance over the window, so that
tokens whose importance changes are kept. While the prompt is processed, the whole budget is shared among the layers
seen so far, and earlier layers shrink as later layers are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from compresskv.apportion import sainte_lague
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import LayerPrefill, LayerScores, Observation, PromptShape, group_mean
from compresskv.methods import declares

LARGE_BUDGET = 256
"""Budgets above this many tokens use the second pair of taus (the authors' settings for 128 and for 1024)."""

Tau = Annotated[float, Ge(0.01), Le(100)]
Taus = tuple[Tau, Tau]
"""(tau1, tau2): 1 / tau1 is the exponent of a layer's dispersion, and 1 / tau2 is the exponent of its shift."""

TAUS: dict[str, tuple[Taus, Taus]] = {
    "llama-3.1-8b-instruct": ((1.6, 0.6), (1.6, 0.4)),
    "mistral-7b-instruct-v0.3": ((1.0, 0.8), (0.8, 0.5)),
    "qwen2.5-7b-instruct": ((0.4, 0.6), (1.5, 0.6)),
}
"""The authors' taus by model, for budgets up to 256 tokens and for larger budgets. Other models use 1.0 everywhere.

The first two models are in the repositories of CompressKV and CAKE (antgroup/cakekv c4675ce), the last only in CAKE's.
"""


@dataclass(frozen=True, eq=False)
class CakeScores(LayerScores):
    """Scores with the attention's `dispersion` over past tokens (entropy, nats) and `shift` over the window (variance).

    `dtype`: dtype of the shift and its power, as in the released code; None: float64.
    """

    dispersion: float = 0.0
    shift: float = 0.0
    dtype: torch.dtype | None = None

    def preference(self, taus: tuple[float, float]) -> float:
        """Return dispersion^(1/tau1) · shift^(1/tau2), kept above zero so that it can be a share."""
        dispersion = max(self.dispersion, 0.0)
        if self.dtype is None:
            return max(dispersion ** (1 / taus[0]) * self.shift ** (1 / taus[1]), 1e-300)
        powers = torch.tensor(dispersion) ** (1 / taus[0]), torch.tensor(self.shift, dtype=self.dtype) ** (1 / taus[1])
        return max((powers[0] * powers[1]).item(), 1e-300)


@dataclass(frozen=True)
class CakeScorer:
    """Mean + `gamma` · unbiased variance over the window, pooled, averaged over each KV head's query heads."""

    observation: Observation
    gamma: float = 200.0

    @property
    def window(self) -> int:
        return self.observation.window

    def __call__(self, layer: LayerPrefill) -> CakeScores:
        attention = self.observation.attention(layer)
        # As in the released code, the entropy is float32; the variance and its sum have the dtype of the attention.
        shares = attention.float()
        entropy = -(shares * (shares + 1e-10).log()).sum()
        variance = attention.var(1)
        scores = self.observation.pool(attention.mean(1) + self.gamma * variance)
        scores = group_mean(scores, layer.kv_heads)
        as_released = self.observation.dtype is None
        # As released: summed over the heads, rounded to the model's dtype, then summed over the columns.
        total = variance.sum(0).sum() if as_released else variance.sum()
        dispersion, shift = torch.stack([entropy, total.float()]).tolist()  # synchronises with the device once
        if as_released:
            return CakeScores(scores, dispersion, shift, variance.dtype)
        return CakeScores(scores, dispersion, shift)


@dataclass(frozen=True)
class CakeAllocator:
    """Shares the budget of all layers among the layers seen so far, in proportion to their preference.

    `taus`: (tau1, tau2) for budgets up to 256 tokens, and for larger budgets. `exact`: by Sainte-Laguë, which uses the
    whole budget and only takes tokens from earlier layers. If false: by the released `adjust`, which guarantees neither
    property, and evicts nothing from prompts that exceed the budget by at most the window.
    """

    taus: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 1.0), (1.0, 1.0))
    exact: bool = True

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        taus = self.taus[budget > LARGE_BUDGET]
        preferences = [_cake(layer).preference(taus) for layer in scores]
        total = (budget - shape.window) * shape.layers
        if self.exact:
            return sainte_lague(preferences, total, shape.past)
        if shape.length <= budget + shape.window:
            return [shape.past] * len(scores)
        mass = sum(preferences)
        return adjust([p / mass * total for p in preferences], total, shape.past)


def _cake(scores: LayerScores) -> CakeScores:
    if not isinstance(scores, CakeScores):
        raise UserError(
            "method/allocator",
            "use it with method=cake",
            value="cake",
            why="it needs values that only CAKE's scorer measures",
        )
    return scores


def adjust(budgets: Sequence[float], total: int, cap: int) -> list[int]:
    """Round `budgets` to integers that usually sum to `total`: the released code's single pass over excess and deficit.

    The excess over `cap` is spread over the layers below it. This may push these layers above `cap`; they are not
    clipped again.
    """
    whole = [int(b) for b in budgets]
    excess = sum(max(b - cap, 0) for b in whole)
    whole = [min(b, cap) for b in whole]
    if excess:
        _spread(whole, excess, [i for i, b in enumerate(whole) if b < cap])
    difference = total - sum(whole)
    if difference > 0:
        _spread(whole, difference, [i for i, b in enumerate(whole) if b < cap])
    elif difference < 0:
        _spread(whole, difference, [i for i, b in enumerate(whole) if b > 1])
    return whole


def _spread(budgets: list[int], amount: int, layers: Sequence[int]) -> None:
    """Add `amount`, which may be negative, in equal parts. The first layers take the remainder, one token each."""
    sign = 1 if amount > 0 else -1
    for place, layer in enumerate(layers):
        each, rest = divmod(abs(amount), len(layers))
        budgets[layer] += sign * (each + (place < rest))


@declares(gives="the dispersion and shift of the window's attention")
def scorer(context: Context, *, gamma: Annotated[float, Ge(0), Le(1e9)]) -> CakeScorer:
    """Build the scorer. `gamma`: the weight of the variance.

    Raises `UserError` for a window of one position, which has no variance.
    """
    if context.observation.window < 2:
        raise UserError(
            "observation.window", "set it to 2 or more", why="CAKE measures how attention varies over the window"
        )
    return CakeScorer(context.scoring, gamma)


@declares(needs="the dispersion and shift of the window's attention")
def allocator(context: Context, *, taus: tuple[Taus, Taus] | None) -> CakeAllocator:
    """Build the allocator. `taus`: (tau1, tau2) up to 256 tokens, and for larger budgets; None: the authors' values."""
    return CakeAllocator(
        taus or TAUS.get(context.model.casefold(), ((1.0, 1.0), (1.0, 1.0))), context.protocol.exact_budget
    )
