"""Observe every decoding step of a full cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import SDPA
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode import decode_cache, forward_tokens
from compresskv.engine.prefill import Prefill, prefill
from compresskv.engine.rotary import spanning
from compresskv.engine.rows import Bucket
from compresskv.engine.setting import FULL

Watch = Callable[[int, Tensor, Tensor, Tensor, float, Tensor], None]
"""Callback with (layer, query [kv_heads, G, d], keys and values [kv_heads, seen, d], scaling, output [like query])."""


class ProbeBackend(SDPA):
    """SDPA that passes each layer's tensors to `watch` when a new token attends. `layers`: how many layers evict."""

    def __init__(self, layers: int, watch: Watch):
        super().__init__()
        self.layers, self.watch, self.calls = layers, watch, 0

    def decode_bucket(
        self, query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, earlier: int, scaling: float
    ) -> Tensor:
        out = super().decode_bucket(query, key, value, bucket, earlier, scaling)
        keys, values = (buffer[:, : bucket.longest + earlier + 1] for buffer in (bucket.keys, bucket.values))
        self.watch(self.calls % self.layers, query[:, :, 0], keys, values, scaling, out[:, :, 0])
        self.calls += 1
        return out


@contextmanager
def probed(model: PreTrainedModel, layers: int, watch: Watch) -> Iterator[None]:
    """Call `watch` for every layer that decodes in `model`, inside the block."""
    name = register("compresskv_probe", ProbeBackend(layers, watch))
    try:
        with attached(model, name):
            yield
    finally:
        forget(name)


def full_prefill(model: PreTrainedModel, ids: Tensor, window: int, text: int = 0) -> Prefill:
    """Prefill `ids` [prompt] with plain attention, as part of a text of at least `text` tokens, and keep all."""
    with attached(model, "sdpa"), spanning(model, text):
        return prefill(model, ids, window)


def step(model: PreTrainedModel, cache: EvictedCache, token: int, position: int) -> Tensor:
    """Feed one token; return the logits [vocabulary] of the next one."""
    return forward_tokens(model, torch.tensor([token], device=model.device), cache, position)[0]


def full_cache(prompt: Prefill, room: int) -> EvictedCache:
    """Create a decoding cache that holds everything. Create and use it within `probed`."""
    return decode_cache(prompt, [prompt.kept(FULL)], room)
