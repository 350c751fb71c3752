"""The kernels under the attention function: torch's sdpa everywhere; its `varlen_attn` and flash-attn on CUDA."""

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import PreTrainedConfig

from compresskv.engine.ragged import (
    MaskedTable,
    RaggedRows,
    RaggedTable,
    VarlenTable,
    bucketed_capacities,
    exact_capacities,
)
from compresskv.engine.rows import Bucket, BucketedRows, LayerRows, Source
from compresskv.flash import flash_kernels
from compresskv.hardware import AMPERE, MOST_HEAD_DIM


class Backend(Protocol):
    """A kernel, and the layout of the rows that it decodes from."""

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        """Compute causal attention, aligned bottom-right.

        query [1, q_heads, q, d], key and value [1, kv_heads, kv, d].
        """
        ...

    def end_prefill(self) -> None:
        """Free what the layers share during a prefill."""
        ...

    def rows(self, sources: list[Source], room: int) -> list[LayerRows]:
        """Return the folded rows of each layer, with `room` for new tokens. Empties `sources`."""
        ...

    def capacities(self, rows: Mapping[int, int], room: int) -> dict[int, int]:
        """Return the allocated tokens of a folded row: see `ragged.Capacities`."""
        ...

    def decode(self, query: Tensor, key: Tensor, value: Tensor, rows: Any, scaling: float) -> Tensor:
        """Append new tokens to each folded row of a layer. Each new token attends to its row up to itself.

        query [settings, q_heads, new, d], key and value [settings, kv_heads, new, d] -> [settings, new, q_heads, d].
        """
        ...


def flash_serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether torch's flash kernel runs: half precision, on Ampere or newer."""
    half = dtype in (torch.float16, torch.bfloat16)
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


CUDNN_FROM = 16_384
"""Tokens. On Hopper and newer, a whole prompt that is longer is prefilled with cuDNN's attention.

cuDNN's kernel is about 1.6 times faster there than torch's flash kernel, but it plans for every new shape, which takes
tens of milliseconds. Not measured by us.
"""

HOPPER = (9, 0)


def cudnn_pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether cuDNN's attention is faster than torch's flash kernel: half precision, on Hopper or newer."""
    return flash_serves(dtype, device) and torch.cuda.get_device_capability(device) >= HOPPER


class SDPA:
    """torch's `scaled_dot_product_attention`. Runs everywhere, and is the backend on the CPU."""

    capacities = staticmethod(exact_capacities)

    def __init__(self) -> None:
        # The masks of the current chunk, by shape and window. All layers of a kind share one mask.
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        new, total = query.shape[2], key.shape[2]
        slides = sliding_window is not None and total > sliding_window
        mask: Tensor | None = None
        if slides or (1 < new < total and not query.is_cuda):
            # `is_causal` aligns top-left, so a chunk or a sliding window needs its own bottom-right mask.
            mask = self._mask(query, total, sliding_window if slides else None)
        elif 1 < new < total:
            # The same mask, in a form that CUDA's kernels know, so that it takes no memory.
            mask = causal_lower_right(new, total)
        grouped = query.shape[1] != key.shape[1]
        if grouped and query.is_cuda and (slides or not flash_serves(query.dtype, query.device)):
            # CUDA's efficient kernel does not support groups, and the math kernel would hold all logits.
            groups, grouped = query.shape[1] // key.shape[1], False
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        whole = mask is None and new == total > CUDNN_FROM and query.shape[3] <= MOST_HEAD_DIM
        kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
        with (
            sdpa_kernel(kernels, set_priority=True)
            if whole and cudnn_pays(query.dtype, query.device)
            else nullcontext()
        ):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and new > 1,
                scale=scaling,
                enable_gqa=grouped,
            )

    def _mask(self, query: Tensor, total: int, sliding_window: int | None) -> Tensor:
        """Return the mask for `query`, the last of `total` tokens: [new, total], to add to the logits."""
        new = query.shape[2]
        shape = (new, total, sliding_window)
        mask = self._masks.get(shape)
        if mask is None or mask.dtype != query.dtype or mask.device != query.device:
            for other in [known for known in self._masks if (known[2] is None) == (sliding_window is None)]:
                del self._masks[other]
            mask = query.new_full((new, total), float("-inf")).triu_(total - new + 1)
            if sliding_window is not None:
                mask += torch.full_like(mask, float("-inf")).tril_(total - new - sliding_window)
            self._masks[shape] = mask
        return mask

    def end_prefill(self) -> None:
        self._masks.clear()

    def rows(self, sources: list[Source], room: int) -> list[LayerRows]:
        return [BucketedRows(sources.pop(0), room) for _ in range(len(sources))]

    def decode(self, query: Tensor, key: Tensor, value: Tensor, rows: BucketedRows, scaling: float) -> Tensor:
        return rows.attend(self.decode_bucket, query, key, value, scaling)

    def decode_bucket(
        self, query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, earlier: int, scaling: float
    ) -> Tensor:
        """Append tokens to each row of `bucket`, after `earlier` new tokens. Each new token attends to its row up to
        itself.

        query [rows, group, new, d], key and value [rows, new, d] -> [rows, group, new, d].
        """
        new, start = query.shape[2], bucket.longest + earlier
        end = start + new
        bucket.keys[:, start:end] = key
        bucket.values[:, start:end] = value
        mask = None if bucket.gaps is None else bucket.gaps[..., :end]
        if new > 1:
            later = torch.full((new, new), float("-inf"), device=query.device, dtype=query.dtype).triu(1)
            causal = F.pad(later, (start, 0))[None, None]
            mask = causal if mask is None else mask + causal
        return self.attend(query, bucket.keys[:, :end], bucket.values[:, :end], mask, scaling)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attend: query [rows, group, new, d], keys and values [rows, tokens, d] -> [rows, group, new, d].

        `mask` [rows or 1, 1, new, tokens] is added to the logits.
        """
        keys, values = keys[:, None], values[:, None]
        # The G query heads of a group share their keys: they are either the query axis of one head, or G heads over
        # one. On CPUs, the query axis is faster in float32, and G heads are faster in half precision
        # (docs/performance.md). CUDA has no fast kernel for groups with a mask.
        if not query.is_cuda and query.dtype != torch.float32:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=True)
        if mask is not None and query.shape[2] > 1:
            mask = mask.repeat(1, 1, query.shape[1], 1)
        out = F.scaled_dot_product_attention(query.flatten(1, 2)[:, None], keys, values, attn_mask=mask, scale=scaling)
        return out.view(query.shape)


class MaskedSDPA(SDPA):
    """sdpa on CUDA: few calls per layer, with the same shapes at every step."""

    capacities = staticmethod(bucketed_capacities)

    def rows(self, sources: list[Source], room: int) -> list[LayerRows]:
        return table_rows(MaskedTable, sources, room)

    def decode(self, query: Tensor, key: Tensor, value: Tensor, rows: RaggedRows, scaling: float) -> Tensor:  # type: ignore[override]
        settings, q_heads, new, head_dim = query.shape
        rows.advance(new)
        table, layer = rows.table, rows.layer
        assert isinstance(table, MaskedTable)
        rows.append(table.new_slots(layer), key, value)
        query = query.reshape(settings * table.kv_heads, -1, new, head_dim)
        in_order = table.in_order[layer]
        if not in_order:
            query = query.index_select(0, table.order[layer])
        outputs = [
            self.attend(query[bucket.rows], bucket.keys, bucket.values, table.causal_mask(layer, bucket), scaling)
            for bucket in table.buckets[layer]
        ]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        out = out if in_order else out.index_select(0, table.place[layer])
        return out.view(settings, q_heads, new, head_dim).transpose(1, 2)


class Varlen(SDPA):
    """torch's variable-length attention: one call per layer takes ragged rows from one storage, without masks.

    It runs the FlashAttention-2 kernel that is part of torch. `kernel` (default:
    `torch.nn.attention.varlen.varlen_attn`) has its signature. Prefills go through sdpa.
    """

    def __init__(self, kernel: Any = None):
        super().__init__()
        self.kernel = kernel or import_module("torch.nn.attention.varlen").varlen_attn

    def rows(self, sources: list[Source], room: int) -> list[LayerRows]:
        return table_rows(VarlenTable, sources, room)

    def decode(self, query: Tensor, key: Tensor, value: Tensor, rows: RaggedRows, scaling: float) -> Tensor:  # type: ignore[override]
        settings, q_heads, new, head_dim = query.shape
        rows.advance(new)
        table, layer = rows.table, rows.layer
        assert isinstance(table, VarlenTable)
        rows.append(table.write[layer], key, value)
        folded = settings * table.kv_heads
        out = self.kernel(
            query.reshape(folded, -1, new, head_dim).transpose(1, 2).reshape(folded * new, -1, head_dim),
            rows.keys[:, None],
            rows.values[:, None],
            table.queries,
            table.firsts[layer],
            new,
            table.longest[layer],
            scale=scaling,
            window_size=(-1, 0) if new > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=table.used[layer],
            num_splits=table.splits[layer],
        )
        return out.view(settings, table.kv_heads, new, -1, head_dim).transpose(1, 2).reshape(settings, new, q_heads, -1)


class FlashAttention2:
    """FlashAttention-2. `kernels` (default: what is installed) supplies its two functions."""

    capacities = staticmethod(exact_capacities)

    def __init__(self, kernels: Any = None):
        self.kernels = kernels or flash_kernels()  # importing them needs CUDA

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

    def end_prefill(self) -> None:
        pass

    def rows(self, sources: list[Source], room: int) -> list[LayerRows]:
        return table_rows(RaggedTable, sources, room)

    def decode(self, query: Tensor, key: Tensor, value: Tensor, rows: RaggedRows, scaling: float) -> Tensor:
        settings, q_heads, new, head_dim = query.shape
        rows.advance(new)
        table, layer = rows.table, rows.layer
        folded = settings * table.kv_heads
        # The kernel appends the new tokens itself.
        out = self.kernels.flash_attn_with_kvcache(
            query.reshape(folded, -1, new, head_dim).transpose(1, 2),
            rows.overlapping(rows.keys),
            rows.overlapping(rows.values),
            k=key.reshape(folded, new, 1, head_dim),
            v=value.reshape(folded, new, 1, head_dim),
            cache_seqlens=table.lengths[layer],
            cache_batch_idx=table.starts[layer],
            softmax_scale=scaling,
            causal=True,
        )
        return out.view(settings, table.kv_heads, new, -1, head_dim).transpose(1, 2).reshape(settings, new, q_heads, -1)


def table_rows(table: type[RaggedTable], sources: list[Source], room: int) -> list[LayerRows]:
    """Return the rows of each layer, from one table per device (and per number of KV heads, if this number differs)."""
    kinds = [(source.keys.device, source.kv_heads) for source in sources]
    parts: dict[tuple[torch.device, int], list[Source]] = {kind: [] for kind in kinds}
    for kind in kinds:
        parts[kind].append(sources.pop(0))
    rows = {kind: iter(table(part, room).rows) for kind, part in parts.items()}
    return [next(rows[kind]) for kind in kinds]


_backends: dict[str, Backend] = {}


def backend_of(config: PreTrainedConfig) -> Backend:
    """Return the backend of the model of this `config`. Raises `RuntimeError` if the model is not `attached`."""
    name = config.get_text_config(decoder=True)._attn_implementation
    if name not in _backends:
        raise RuntimeError(f"the model runs {name}: use its cache within `attached`")
    return _backends[name]
