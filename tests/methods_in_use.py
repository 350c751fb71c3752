"""Methods for the engine's tests: equal, per-layer and per-head ragged capacities."""

from dataclasses import dataclass

from baselines.snapkv import SnapKVScorer
from baselines.streaming_llm import StreamingLLMScorer
from baselines.uniform import UniformAllocator
from compresskv.eviction import EvictionMethod, Observation
from compresskv.layer_error import LayerErrorAllocator
from compresskv.semantic_heads import SemanticHeadScorer


@dataclass(frozen=True)
class RaggedAllocator:
    """Different for every layer and KV head, and falling for earlier layers as later ones arrive."""

    def __call__(self, scores, shape, budget):
        base = budget - shape.window
        return [
            tuple(base + 5 * head - 3 * layer - len(scores) for head in range(shape.kv_heads))
            for layer in range(len(scores))
        ]


SNAPKV = EvictionMethod(SnapKVScorer(Observation(window=4)), UniformAllocator())
STREAMING = EvictionMethod(StreamingLLMScorer(), UniformAllocator())
FULL = EvictionMethod(StreamingLLMScorer(), UniformAllocator())
RAGGED = EvictionMethod(SnapKVScorer(Observation(window=4, kernel=3)), RaggedAllocator())


def compresskv(layers: int) -> EvictionMethod:
    heads = tuple((layer % 6, (layer + 2) % 6) for layer in range(layers))
    shares = tuple((layer + 1) / sum(range(layers + 1)) for layer in range(layers))
    return EvictionMethod(SemanticHeadScorer(Observation(window=4), heads), LayerErrorAllocator(shares))
