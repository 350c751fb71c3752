"""Compress several prompts one after the other, and decode them as one batch with a length and position per row.

Each prompt is prefilled alone on the in-layer path, so that the full cache of all layers never exists. Its kept tokens
are held until the batch is made.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from compresskv.engine.cache import EvictedCache, SlidingLayer
from compresskv.engine.decode_eviction import DecodeEviction
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.rows import Source, by_size
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import counts


class WaitingCache(LayerwiseCache):
    """A prompt of `prompt_length` tokens that is compressed as it is prefilled, then waits for `join`.

    `sources`: the kept tokens of each layer that evicts.
    """

    prompt_length: int

    def __init__(
        self,
        config: PreTrainedConfig,
        setting: Setting,
        prompt_length: int,
        schedule: EvictionSchedule = AFTER_PROMPT,
    ):
        super().__init__(config, setting, prompt_length, schedule=schedule)
        self.sources: list[Source] = []

    def hold(self, sources: list[Source], length: int, room: int) -> None:
        """Store `sources` without copying the kept tokens into buffers: this cache does not decode."""
        self.sources = sources


@dataclass
class Allocation:
    """The bytes of prompts as one batch that generates `new_tokens`. Each prompt is counted once, when it is added.

    The bytes are not always the sum over prompts, since `backend.capacities` depends on all rows. `rows` by layer, as
    in `EvictedCache.allocated_bytes`. `room`: maximum number of new tokens that a row holds at once. `sliding`: bytes
    of sliding-window layers.
    """

    new_tokens: int
    room: int = 0
    rows: list[Counter[int]] = field(default_factory=list)
    evicting: int = 0
    sliding: int = 0

    def with_one(self, prompt: WaitingCache) -> "Allocation":
        """Return the allocation with one more prompt, which may be counted already."""
        own = list(map(by_size, counts(prompt.kept)))
        rows = [before + more for before, more in zip(self.rows, own, strict=True)] if self.rows else own
        room = max(self.room, _room(prompt, self.new_tokens))
        sliding = self.sliding + sliding_bytes([prompt], self.new_tokens)
        return Allocation(self.new_tokens, room, rows, prompt.allocated_bytes(rows, room), sliding)

    @property
    def nbytes(self) -> int:
        return self.evicting + self.sliding


def _room(prompt: WaitingCache, new_tokens: int) -> int:
    """Return the maximum number of new tokens that a row of this prompt holds at once."""
    spare = max((prompt.setting.tokens(prompt.prompt_length) or 0) - prompt.prompt_length, 0)
    return prompt.schedule.room(new_tokens, spare, prompt.setting.window)


def sliding_bytes(prompts: Sequence[WaitingCache], room: int) -> int:
    """Return the bytes that their sliding-window layers, each of at most its window, will hold after `room` new
    tokens."""
    total = 0
    for prompt in prompts:
        for layer in prompt.sliding.values():
            held = layer.keys.shape[2]
            total += (layer.keys.nbytes + layer.values.nbytes) // held * min(held + room, layer.sliding_window)
    return total


@torch.no_grad()
def join(prompts: list[WaitingCache], room: int) -> EvictedCache:
    """Create a cache of one row per prompt, with `room` for new tokens. `prompts` must be prefilled, and are emptied.

    At most one layer is in memory twice. A row's next token is at the position of its prompt's length: see
    `decode.forward_tokens`. The model must be `attached`. Raises `UserError` for prompts of different lengths that do
    not fill a sliding window.
    """
    longest = max(prompt.prompt_length for prompt in prompts)
    cache = EvictedCache(prompts[0].config, 1, longest, lambda layer: None)
    for index, layer in cache.sliding.items():
        _join_sliding(layer, [prompt.sliding[index] for prompt in prompts])
    sources = []
    for _ in cache.evicting:
        sources.append(_joined([prompt.sources.pop(0) for prompt in prompts]))
    cache.hold(sources, longest, room)
    if evictions := [prompt.eviction for prompt in prompts if prompt.eviction]:
        cache.evict_while_decoding(DecodeEviction.joined(evictions))
    prompts.clear()
    return cache


def _joined(prompts: Sequence[Source]) -> Source:
    """Concatenate one layer of all prompts: their keys and values, one head after the other."""
    rows: list[tuple[int, Tensor]] = []
    begin = 0
    for source in prompts:
        heads, length, _ = source.keys.shape
        rows += [(0, positions + (begin + head * length)) for head, positions in source.rows]
        begin += heads * length
    keys = torch.cat([source.keys.flatten(0, 1) for source in prompts])
    values = torch.cat([source.values.flatten(0, 1) for source in prompts])
    return Source(keys[None], values[None], rows, prompts[0].kv_heads)


def _join_sliding(joined: SlidingLayer, layers: Sequence[SlidingLayer]) -> None:
    held = {layer.keys.shape[2] for layer in layers}
    if len(held) > 1:
        raise UserError(
            "prompts",
            "choose prompts of equal length, or prompts that fill the sliding window",
            why=f"a prompt of {min(held)} tokens is shorter than the sliding window of {joined.sliding_window} tokens, "
            "so it cannot decode together with prompts of other lengths",
        )
    joined.lazy_initialization(layers[0].keys, layers[0].values)
    joined.keys = torch.cat([layer.keys for layer in layers])
    joined.values = torch.cat([layer.values for layer in layers])
    joined.cumulative_length = max(layer.cumulative_length for layer in layers)
    for layer in layers:
        layer.keys = layer.values = None  # type: ignore[assignment]
