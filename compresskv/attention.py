"""The attention function registered with transformers, over two backends.

transformers hands it RoPE'd queries, keys and values of any decoder. In the prefill the prompt attends to itself in
full; afterwards the layer of our cache that the keys came from sees the queries of the observation window. When a
layer has evicted, the new token attends to what is left of it. Nothing is patched: a model opts in by
`set_attn_implementation`, and `attached` puts its own implementation back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from compresskv.errors import UserError

if TYPE_CHECKING:
    from compresskv.cache import Bucket


class Backend(Protocol):
    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        """Causal attention, bottom-right aligned. query [1, q_heads, q, d], key and value [1, kv_heads, kv, d]."""
        ...

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: "Bucket", new: int, scaling: float) -> Tensor:
        """Append one token to each row of `bucket`, after `new` earlier ones, and attend to all of the row.

        query [rows, group, d], key and value [rows, d] -> [rows, group, d].
        """
        ...


class SDPA:
    """`scaled_dot_product_attention` of torch: runs everywhere, and is the backend on the CPU."""

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        new, total = query.shape[2], key.shape[2]
        mask = None
        if 1 < new < total or (sliding_window is not None and total > sliding_window):
            # `is_causal` aligns top-left, so a chunk or a sliding window needs its own bottom-right mask.
            row = torch.arange(total - new, total, device=query.device)[:, None]
            column = torch.arange(total, device=query.device)
            mask = column <= row
            if sliding_window is not None:
                mask &= column > row - sliding_window
        grouped = query.shape[1] != key.shape[1]
        if grouped and mask is not None and query.is_cuda:
            # CUDA's memory-efficient kernel takes a mask, but no groups; the one that takes both holds all logits.
            groups, grouped = query.shape[1] // key.shape[1], False
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and new > 1,
            scale=scaling,
            enable_gqa=grouped,
        )

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: "Bucket", new: int, scaling: float) -> Tensor:
        end = bucket.longest + new + 1
        bucket.keys[:, end - 1] = key
        bucket.values[:, end - 1] = value
        gaps = bucket.gaps
        mask = None if gaps is None else gaps[..., :end]
        return self.attend(query, bucket.keys[:, :end], bucket.values[:, :end], mask, scaling)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """One query position: query [rows, group, d], keys and values [rows, kept, d], mask [rows, 1, 1, kept]."""
        keys, values = keys[:, None], values[:, None]
        # The G query heads of a group share their keys: they are the query axis of one head, or G heads over one.
        # CPUs do the former faster in float32, the latter in half precision (docs/performance.md); CUDA has no fast
        # kernel for groups with a mask.
        if query.is_cuda or query.dtype == torch.float32:
            return F.scaled_dot_product_attention(query[:, None], keys, values, attn_mask=mask, scale=scaling)[:, 0]
        out = F.scaled_dot_product_attention(
            query[:, :, None], keys, values, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return out[:, :, 0]


class FlashAttention2:
    """The flash-attn library; `kernels` (default: the module `flash_attn`) supplies its two functions."""

    def __init__(self, kernels: Any = None):
        if kernels is None:
            kernels = import_module("flash_attn")  # importing it needs CUDA, so only on request
        self.kernels = kernels

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        out = self.kernels.flash_attn_func(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            softmax_scale=scaling,
            causal=True,
            window_size=(-1, -1) if sliding_window is None else (sliding_window - 1, 0),
        )
        return out.transpose(1, 2)

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: "Bucket", new: int, scaling: float) -> Tensor:
        # The kernel wants each row without gaps, and appends the new token itself.
        out = self.kernels.flash_attn_with_kvcache(
            query[:, None],
            bucket.keys[:, :, None],
            bucket.values[:, :, None],
            k=key[:, None, None],
            v=value[:, None, None],
            cache_seqlens=bucket.lengths + new,
            softmax_scale=scaling,
        )
        return out[:, 0]


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
        return layer.rows.attend(backend, query, key, value, scaling).unsqueeze(1), None
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


@contextmanager
def attached(model: PreTrainedModel, backend: str = "sdpa") -> Iterator[PreTrainedModel]:
    """Run `model` with our attention over `backend` ("sdpa", "flash_attention_2"); its own is restored on leaving."""
    name = _NAMES.get(backend, backend)
    if name not in _backends:
        register(name, {"sdpa": SDPA, "flash_attention_2": FlashAttention2}[backend]())
    original = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation(original)
