"""The seam to transformers: the attention function registered with it, over one of the backends.

transformers hands it RoPE'd queries, keys and values of any decoder. In the prefill the prompt attends to itself in
full; afterwards the layer of our cache that the keys came from sees the queries of the observation window. When a
layer has evicted, the new token attends to what is left of it. Nothing is patched: a model opts in by
`set_attn_implementation`, and `attached` puts its own implementation back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from compresskv.engine.backends import SDPA, Backend, FlashAttention2
from compresskv.errors import UserError

# transformers treats every name that contains "flash" as a kernel of its own.
_NAMES = {"sdpa": "compresskv_sdpa", "flash_attention_2": "compresskv_fa2"}
_backends: dict[str, Backend] = {}


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with eviction, in the signature that transformers calls.

    query [batch, q_heads, new, d], key and value [batch, kv_heads, *, d] -> [batch, new, q_heads, d]. Raises
    `UserError` for what it would get wrong: logit soft-capping, attention sinks, position biases, masks of any kind.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(f"{type(module).__name__} uses {name}, which eviction does not support: use another model")
    if attention_mask is not None:
        raise UserError("a custom attention mask is not supported under eviction: pass one unpadded prompt at a time")
    if module.training and dropout:
        raise UserError("the model is in training mode with attention dropout: call model.eval()")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    backend = _backends[module.config._attn_implementation]
    layer = getattr(key, "cache_layer", None)
    if layer is not None and layer.rows is not None:
        if layer.masked is not None:
            query = query.index_fill(1, layer.masked, 0)
        return layer.rows.attend(backend.decode, query, key, value, scaling).unsqueeze(1), None
    out = backend.prefill(query, key, value, scaling, sliding_window)
    if layer is not None:
        layer.observe(query, scaling)
    return out.transpose(1, 2).contiguous(), None


def refuse_padding(attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """The mask function beside `attention_forward`: no mask is ever made, so a padded batch is refused."""
    if attention_mask is not None and not attention_mask.all():
        raise UserError("a padded batch is not supported under eviction: pass one unpadded prompt at a time")


def register(name: str, backend: Backend) -> str:
    """Make `backend` known to transformers as the attention implementation `name`; returns the name."""
    _backends[name] = backend
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, refuse_padding)
    return name


def forget(name: str) -> None:
    """Let go of the backend `name`, and of what it refers to."""
    _backends.pop(name, None)


def is_attached(config: PreTrainedConfig) -> bool:
    """Whether the model of this configuration runs with our attention now."""
    return config._attn_implementation in _backends


@contextmanager
def attached(model: PreTrainedModel, backend: str = "sdpa") -> Iterator[PreTrainedModel]:
    """Run `model` with our attention over `backend` ("sdpa", "flash_attention_2"); its own is restored on leaving."""
    name = _NAMES.get(backend, backend)
    if name not in _backends:
        register(name, {"sdpa": SDPA, "flash_attention_2": FlashAttention2}[backend]())
    original = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if not is_attached(model.config):
            raise UserError(
                f"{type(model).__name__} computes attention by its own code, which eviction cannot replace: "
                "choose a model of another architecture"
            )
        yield model
    finally:
        model.set_attn_implementation(original)
