"""Eviction inside each layer, as soon as its attention is done: the full cache of all layers never exists at once.

For memory and latency measurements, and for people who use a method in their own `generate`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from compresskv.calibration import Calibration
from compresskv.engine.attention import attached, is_attached
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode import Stopping, decode
from compresskv.engine.generation import Generation
from compresskv.engine.prefill import Setting, forward_prompt, prompt_shape
from compresskv.engine.rows import FoldedRows
from compresskv.errors import UserError
from compresskv.eviction import Capacity, EvictionMethod, LayerPrefill, LayerScores
from compresskv.generation_defaults import ignored
from compresskv.methods import method_for
from compresskv.selection import Kept, counts, keep_all, select, tighten


class LayerwiseCache(EvictedCache):
    """A cache of one prompt that evicts by itself; afterwards `kept` holds the prompt positions that are left.

    `prompt_length` None: the first forward brings the whole prompt. `room` new tokens are allocated ahead.
    """

    def __init__(self, config: PreTrainedConfig, setting: Setting, prompt_length: int | None = None, room: int = 256):
        super().__init__(config, setting.window, prompt_length, self._evict)
        self.setting = setting
        self.room = room
        self.kept: Kept = []
        self._scores: list[LayerScores] = []
        self._capacities: list[Capacity] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """As transformers has it. Raises `UserError` where the model's own attention would misread what is left."""
        if not is_attached(self.config):
            raise UserError(
                "this cache is compressed, and the model is back to its own attention: use the cache inside "
                "`with compressed(...) as cache:`"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def refuse_unused(self) -> None:
        """Raise `UserError` if no prompt was compressed."""
        if not any(layer.get_seq_length() for layer in self.layers):
            raise UserError(
                "compressed(...): its cache never saw a prompt, so nothing was compressed: pass past_key_values=cache "
                "to generate, or to the model"
            )
        if any(layer.rows is None for layer in self.evicting):
            raise UserError(
                "compressed(...): the model's attention does not take the keys that its cache returns, so nothing was "
                "evicted: choose a model of another architecture"
            )

    def _evict(self, layer: LayerPrefill) -> None:
        """Compress `layer`, and the layers before it by as much as its scores take from them."""
        length, method, budget = layer.length, self.setting.method, self.setting.budget
        if method is None or budget is None or self.setting.keeps_all(length):
            self.kept.append(keep_all(layer.kv_heads, length, layer.keys.device))
        else:
            shape = prompt_shape(self, layer, method)
            self._scores.append(method.scorer(layer))
            answer = method.allocator(self._scores, shape, budget)
            before, self._capacities = self._capacities, tighten(self._capacities, answer, shape.past)
            for index, capacity in enumerate(before):
                if capacity != self._capacities[index]:
                    self._shrink(index, length)
            self.kept.append(select(self._scores[-1], self._capacities[-1], length))
        sources = [(layer.keys[h], layer.values[h], p) for h, p in enumerate(self.kept[-1])]
        self.evicting[layer.index].rows = FoldedRows(sources, layer.kv_heads, self.room)

    def _shrink(self, index: int, length: int) -> None:
        rows = self.evicting[index].rows
        assert rows is not None
        kept = select(self._scores[index], self._capacities[index], length)
        slots = [torch.searchsorted(old, new) for old, new in zip(self.kept[index], kept, strict=True)]
        sources = [(*rows.source(head), slot) for head, slot in enumerate(slots)]
        self.evicting[index].rows = FoldedRows(sources, rows.kv_heads, self.room)
        self.kept[index] = kept


@contextmanager
def compressed(
    model: PreTrainedModel,
    method: EvictionMethod | str | None,
    budget: int | None,
    calibration: Calibration | str | Path | None = None,
    backend: str | None = None,
    generation_config: Literal["ignored", "honoured"] = "ignored",
) -> Iterator[LayerwiseCache]:
    """A cache for `model.generate(**inputs, past_key_values=cache)` with one prompt; leaving restores the model.

    `method`: one, or the name of one in conf/method. One by name takes the model's calibration if it needs one, or
    `calibration`: what was loaded, a source such as "published", or the path of a file.
    `budget` counts kept tokens per layer and KV head, the observation window included; None keeps everything.
    `generation_config`: whether `generate` applies what the checkpoint asks of greedy decoding, such as a repetition
    penalty; what it is called with applies in either case.
    `backend` is "sdpa" or "flash_attention_2" (None: the latter if the model uses it). Raises `UserError` for a
    budget that does not exceed the window, in use for padding, batches and unsupported attention, after the block for
    a cache that is used on, and on leaving it for one that was not used.
    """
    if backend is None:
        backend = "flash_attention_2" if model.config._attn_implementation == "flash_attention_2" else "sdpa"
    if isinstance(method, str):
        method = method_for(model, method, calibration)
        budget = None if method is None else budget
    with attached(model, backend), nullcontext() if generation_config == "honoured" else ignored(model):
        cache = LayerwiseCache(model.config, Setting(method, budget))
        yield cache
        cache.refuse_unused()


@torch.no_grad()
def generate_in_layer(
    model: PreTrainedModel, ids: Tensor, setting: Setting, stopping: Stopping, chunk: int | None = None
) -> Generation:
    """In-layer path: like `generate` for one setting. `model` must be `attached`."""
    cache = LayerwiseCache(model.config, setting, ids.numel(), stopping.max_new_tokens)
    logits = forward_prompt(model, ids, cache, chunk)
    tokens = decode(model, cache, logits, ids.numel(), 1, stopping, ids)[0]
    tally = counts(cache.kept)
    return Generation(tokens, tally, cache.kept_bytes(tally), cache.sliding_bytes)
