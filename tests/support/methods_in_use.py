"""Methods and settings for the engine's tests: equal, per-layer and per-head ragged capacities."""

from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from baselines.snapkv import SnapKVScorer
from baselines.streaming_llm import StreamingLLMScorer
from baselines.uniform import UniformAllocator
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import EvictionMethod, Observation
from compresskv.layer_error import LayerErrorAllocator
from compresskv.semantic_heads import SemanticHeadScorer


@dataclass(frozen=True)
class RaggedAllocator:
    """Capacities that differ for every layer and KV head, and shrink for earlier layers as later layers are added."""

    def __call__(self, scores, shape, budget):
        base = budget - shape.window
        return [
            tuple(base + 5 * head - 3 * layer - len(scores) for head in range(shape.kv_heads))
            for layer in range(len(scores))
        ]


SNAPKV = EvictionMethod(SnapKVScorer(Observation(window=4)), UniformAllocator())
STREAMING = EvictionMethod(StreamingLLMScorer(), UniformAllocator())
RAGGED = EvictionMethod(SnapKVScorer(Observation(window=4, kernel=3)), RaggedAllocator())


def compresskv(layers: int) -> EvictionMethod:
    heads = tuple((layer % 6, (layer + 2) % 6) for layer in range(layers))
    shares = tuple((layer + 1) / sum(range(layers + 1)) for layer in range(layers))
    return EvictionMethod(SemanticHeadScorer(Observation(window=4), heads), LayerErrorAllocator(shares))


def settings_for(layers: int) -> list[Setting]:
    """Return settings of every kind for a model with this number of evicting layers."""
    return [
        Setting(SNAPKV, 20),
        Setting(SNAPKV, 47),
        Setting(STREAMING, 24),
        Setting(compresskv(max(layers, 1)), 36),
        Setting(RAGGED, 40),
        Setting(SNAPKV, 300),
        FULL,
    ]


def evicting_layers(model: PreTrainedModel) -> list[int]:
    """Return the indices of the model's layers that evict."""
    kinds, _ = get_layer_types_and_kwargs(model.config)
    return [i for i, kind in enumerate(kinds) if kind == "full_attention"]


def name_of(setting: Setting) -> str:
    """Return a name of a setting for the ids of parametrized tests."""
    return "full" if setting.method is None else f"{type(setting.method.scorer).__name__}-{setting.budget}"
