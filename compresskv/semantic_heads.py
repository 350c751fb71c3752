"""CompressKV's scorer: a few semantic retrieval heads of each layer select for all of its KV heads (paper §3.2)."""

from dataclasses import dataclass
from typing import Literal

from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores, Observation
from compresskv.methods import declares
from compresskv.selecting_heads import Heads, count_heads


@dataclass(frozen=True)
class SemanticHeadScorer:
    """Attention of the window in the layer's retrieval heads, summed over the window, pooled, averaged over the heads.

    `heads[layer]` are query heads. Every KV head of a layer keeps the same tokens.
    """

    observation: Observation
    heads: tuple[tuple[int, ...], ...]

    @property
    def window(self) -> int:
        return self.observation.window

    @property
    def selecting_heads(self) -> int:
        return len(self.heads[0])

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        attention = self.observation.attention(layer)[list(self.heads[layer.index])]
        scores = self.observation.pool(attention.sum(1)).mean(0, keepdim=True)
        return LayerScores(scores.expand(layer.kv_heads, -1))


@declares(heads="alike")
def scorer(
    context: Context,
    *,
    heads: Heads,
    head_scores: Literal["semantic", "traditional"],
) -> SemanticHeadScorer:
    """Build the scorer from `heads` query heads of each layer, the best by their calibrated `head_scores`.

    Heads are scored while the model answers, so a calibration for another observation has the same heads.
    """
    calibration = context.calibrated(any_observation=True)
    kind = calibration.kind_of_scores(head_scores, context.protocol)
    count = count_heads(heads, calibration, context.q_heads)
    return SemanticHeadScorer(context.scoring, calibration.top_heads(kind, count))
