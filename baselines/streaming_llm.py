"""StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): the first tokens (attention sinks) and the most recent ones."""

from dataclasses import dataclass

import torch

from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores
from compresskv.methods import declares

SINKS = 4


@dataclass(frozen=True)
class StreamingLLMScorer:
    """Position alone decides. `window` prompt tokens at the end are kept anyway.

    `tail` "recent": four sinks, then the most recent tokens. "window": the earliest tokens and the observation window
    only, as in the released CompressKV code.
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
