"""CompressKV's scorer: a few semantic retrieval heads of each layer decide for all of its KV heads (paper §3.2)."""

from dataclasses import dataclass

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


def scorer(context: Context) -> SemanticHeadScorer:
    """`heads`: how many a layer (null: as calibrated); `head_scores`: semantic or traditional."""
    calibration = context.calibrated()
    kind = context.parameters.get("head_scores", "semantic")
    if (
        kind == "semantic"
        and context.protocol.srh_multiplicity == "count"
        and "semantic_count" in calibration.head_scores
    ):
        kind = "semantic_count"
    count = context.parameters.get("heads")
    count = calibration.heads if count is None else count
    return SemanticHeadScorer(context.observation, calibration.top_heads(kind, count))
