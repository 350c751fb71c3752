"""SnapKV (Li et al. 2024, arXiv 2404.14469): keep the tokens that the last prompt tokens attend to."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores, Observation, group_mean

Grouping = Literal["contiguous", "strided"]
"""Query heads of KV head k: kG … kG+G−1 ("contiguous"), or k, k+H_kv, … as in the released code ("strided")."""


@dataclass(frozen=True)
class SnapKVScorer:
    """Attention of the observation window, summed over it, averaged over the KV head's query heads, pooled.

    With "strided" `grouping`, scores are pooled before they are averaged, as in the released code.
    """

    observation: Observation = Observation()
    grouping: Grouping = "contiguous"

    @property
    def window(self) -> int:
        return self.observation.window

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores = self.observation.attention(layer).sum(1)
        if self.grouping == "strided":
            return LayerScores(strided_mean(self.observation.pool(scores), layer.kv_heads))
        return LayerScores(self.observation.pool(group_mean(scores, layer.kv_heads)))


def strided_mean(per_query_head: Tensor, kv_heads: int) -> Tensor:
    """Average over the query heads k, k+H_kv, … for KV head k: [q_heads, past] -> [kv_heads, past]."""
    return per_query_head.unflatten(0, (-1, kv_heads)).mean(0)


def scorer(context: Context) -> SnapKVScorer:
    return SnapKVScorer(context.scoring, context.protocol.gqa_grouping)
