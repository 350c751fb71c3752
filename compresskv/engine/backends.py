"""The kernels under the attention function: torch's sdpa everywhere, flash-attn on CUDA."""

from importlib import import_module
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskv.engine.rows import Bucket


class Backend(Protocol):
    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        """Causal attention, bottom-right aligned. query [1, q_heads, q, d], key and value [1, kv_heads, kv, d]."""
        ...

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, new: int, scaling: float) -> Tensor:
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

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, new: int, scaling: float) -> Tensor:
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

    def decode(self, query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, new: int, scaling: float) -> Tensor:
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
