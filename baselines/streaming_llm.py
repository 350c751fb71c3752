"""StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): keep the first tokens (attention sinks) and the most recent
tokens."""

from dataclasses import dataclass

import torch

from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores
from compresskv.methods import declares

SINKS = 4


@dataclass(frozen=True)
class StreamingLLMScorer:
    """Scores that depend only on position. The last `window` prompt tokens are always kept.

    `tail` "recent": four sinks, then the most recent tokens. "window": only the earliest tokens and the observation
    window, as in the released CompressKV code.
    """

    window: int = 1
    tail: str = "recent"

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        past = layer.length - self.window
        scores = torch.arange(past, dtype=torch.float32, device=layer.keys.device)
        if self.tail == "window":
            scores = -scores
        else:
            scores[:SINKS] += past
        return LayerScores(scores.expand(layer.kv_heads, -1))


@declares(window=1, heads="alike")
def scorer(context: Context) -> StreamingLLMScorer:
    if context.protocol.streaming_tail == "window":
        return StreamingLLMScorer(context.observation.window, "window")
    return StreamingLLMScorer()
