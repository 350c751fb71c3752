"""CompressKV's scorer: a few semantic retrieval heads of each layer decide for all of its KV heads (paper §3.2)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores, Observation


@dataclass(frozen=True)
class SemanticHeadScorer:
    """Attention of the observation window in the layer's retrieval heads, summed over it, pooled, averaged over them.

    `heads[layer]` are query heads. Every KV head of a layer keeps the same tokens.
    """

    observation: Observation
    heads: tuple[tuple[int, ...], ...]

    @property
    def window(self) -> int:
        return self.observation.window

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        attention = self.observation.attention(layer)[list(self.heads[layer.index])]
        scores = self.observation.pool(attention.sum(1)).mean(0, keepdim=True)
        return LayerScores(scores.expand(layer.kv_heads, -1))


def scorer(
    context: Context,
    *,
    heads: Annotated[int, Ge(1), Le(1024)] | None,
    head_scores: Literal["semantic", "traditional"],
) -> SemanticHeadScorer:
    """`heads` query heads a layer (None: as many as calibrated), the best by their calibrated `head_scores`.

    Heads are scored while the model answers, so a calibration for another observation has the same ones.
    """
    calibration = context.calibrated(any_observation=True)
    kind = calibration.kind_of_scores(head_scores, context.protocol)
    return SemanticHeadScorer(context.scoring, calibration.top_heads(kind, heads or calibration.heads))
