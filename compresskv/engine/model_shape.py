"""Read what eviction needs from a model's configuration: the layers that evict, their KV heads, the size of a key."""

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs


def evicting_layers(config: PreTrainedConfig) -> list[int]:
    """Return the indices, in the model, of the layers that evict: the layers with global attention."""
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    return [place for place, kind in enumerate(kinds) if kind == "full_attention"]


def head_dim(config: PreTrainedConfig) -> int:
    """Return the number of values of a key."""
    text = config.get_text_config(decoder=True)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def kv_heads(config: PreTrainedConfig) -> int:
    """Return the number of KV heads of a layer, under any name of the field; the maximum if layers differ.

    Without such a field, each query head has its own KV head.
    """
    text = config.get_text_config(decoder=True)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads := getattr(text, name, None):
            return heads if isinstance(heads, int) else max(heads)
    return text.num_attention_heads
