"""H2O (Zhang et al. 2023, arXiv 2306.14048): keep the most recent tokens and the tokens that received most attention.

As in the authors' code (FMInference/H2O, `utils_real_drop`), the score of a token is the sum of the attention that it
receives from all queries of the prompt. Half of the budget goes to the most recent tokens, and half to the tokens with
the highest scores among the other tokens (their heavy_ratio and recent_ratio are equal).

Differences: eviction happens once, after the prompt, as for the other methods, unless `eviction.when` continues while
tokens are generated. Scores are averaged over the query heads that share a KV head (in the authors' models each query
head has its own). Logits and sums are float32 instead of the model's dtype. The observation window is always kept, so
budgets below twice the window keep fewer heavy hitters than half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compresskv.context import Context
from compresskv.eviction import Capacity, LayerPrefill, LayerScores, causal_attention, group_mean


@dataclass(eq=False)
class AccumulatedAttention:
    """The attention that each token received from all queries so far: `total` [kv_heads, seen], float32."""

    total: Tensor = field(default_factory=lambda: torch.empty(0))

    @torch.no_grad()
    def __call__(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        kv_heads, seen, _ = keys.shape
        before, self.total = self.total, keys.new_zeros(kv_heads, seen, dtype=torch.float32)
        if before.numel():
            self.total[:, : before.shape[1]] = before
        for attention in causal_attention(queries, keys, scaling):
            self.total[:, : attention.shape[2]] += group_mean(attention.sum(1), kv_heads)

    def only(self, heads: Sequence[int], kept: Sequence[Tensor]) -> "AccumulatedAttention":
        return AccumulatedAttention(torch.stack([self.total[head, of] for head, of in zip(heads, kept, strict=True)]))


@dataclass(frozen=True, eq=False)
class H2OScores(LayerScores):
    """Accumulated attention. The most recent tokens are kept first: half of the budget, including `window`."""

    window: int = 8

    def order(self, capacity: Capacity) -> Tensor:
        """Return the most recent tokens first, then the heavy hitters among the other tokens: [kv_heads, past]."""
        budget = torch.as_tensor(capacity, device=self.scores.device).reshape(-1, 1) + self.window
        recent = (budget // 2 - self.window).clamp(min=0)
        others = self.ranking < self.ranking.shape[1] - recent
        return self.ranking.gather(1, others.sort(dim=1, stable=True).indices)


@dataclass(frozen=True)
class H2OScorer:
    """Attention accumulated over all queries of the prompt. The last `window` prompt tokens are always kept."""

    window: int = 8

    def observer(self) -> AccumulatedAttention:
        return AccumulatedAttention()

    def __call__(self, layer: LayerPrefill) -> H2OScores:
        total = layer.observed[self].total
        return H2OScores(total[:, : layer.length - self.window], window=self.window)


def scorer(context: Context) -> H2OScorer:
    return H2OScorer(context.observation.window)
