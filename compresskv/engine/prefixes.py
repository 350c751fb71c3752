"""Share the keys and values of whole chunks between prompts with the same beginning. Each chunk is computed once.

With a chunked prefill, a whole chunk's keys and values depend only on the tokens up to its end and, in some models, on
the RoPE of the whole prompt's length. They are computed by operations of the same shapes in every prompt, so the values
of an earlier prompt are bit for bit equal. Scores are not shared, because they depend on each prompt's last queries. If
an observer needs all queries, nothing is shared.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from torch import Tensor

from compresskv.engine.cache import EvictedCache, EvictedLayer, SlidingLayer

Id = TypeVar("Id", bound=Hashable)


def chunk_names(ids: Tensor, chunk: int, regime: tuple[int, ...] = ()) -> list[bytes]:
    """Return a name for each whole chunk of `ids` [prompt], int64.

    Two names are equal if all tokens up to the end of the chunk are equal and, if given, `rotary.regime` of the
    prompts.
    """
    names = []
    digest = hashlib.sha256(b"".join(number.to_bytes(8, "little") for number in (chunk, *regime)))
    for part in ids.cpu().split(chunk)[: ids.numel() // chunk]:
        digest.update(part.numpy().tobytes())
        names.append(digest.digest())
    return names


def in_prefix_order(names: Mapping[Id, Sequence[bytes]]) -> list[Id]:
    """Order prompts, given by the `names` of their chunks, so that prompts with the same beginning are adjacent.

    A group is placed where its first prompt was, and prompts that share nothing keep their order. Each prompt then
    shares with its predecessor all chunks that it shares with any earlier prompt.
    """
    numbers = count()
    places: dict[bytes, int] = {}
    keys = {}
    for id, of_prompt in names.items():
        keys[id] = [places.setdefault(name, next(numbers)) for name in of_prompt]
    return sorted(names, key=keys.__getitem__)


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """Keys and values of one chunk, [1, kv_heads, tokens, head_dim], in every layer of the model.

    A sliding-window layer has only its last tokens, at most as many as its window.
    """

    layers: Sequence[tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class PrefixStore:
    """Chunks of earlier prompts, up to `capacity` bytes. The least recently used chunks are dropped first.

    One store serves one model under one attention backend. `computed` and `reused` count prompt tokens.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.nbytes = 0
        self.computed = 0
        self.reused = 0
        self._chunks: OrderedDict[bytes, StoredChunk] = OrderedDict()

    def restore(self, cache: EvictedCache, names: Sequence[bytes], chunk: int, length: int) -> int:
        """Fill the empty `cache` with the first chunks of a prompt of `length` tokens that are stored here.

        Returns the number of restored tokens. The last tokens are never restored, because their logits and queries are
        needed. The number is 0 if an observer needs all queries.
        """
        there: list[bytes] = []
        window = max((layer.window for layer in cache.evicting), default=1)
        observed = any(layer.observed for layer in cache.evicting)
        for name in [] if observed else names[: max(length - window, 0) // chunk]:
            if name not in self._chunks:
                break
            there.append(name)
        if not there:
            return 0
        self._touch(there)
        restored = len(there) * chunk
        for index, layer in enumerate(cache.layers):
            pieces = [self._chunks[name].layers[index] for name in there]
            if isinstance(layer, EvictedLayer):
                layer.begin_with(pieces)
            else:
                assert isinstance(layer, SlidingLayer)
                layer.begin_with(pieces, restored)
        self.reused += restored
        return restored

    def add(self, cache: EvictedCache, names: Sequence[bytes], start: int, end: int) -> None:
        """Store the chunk from `start` to `end` if it fits: the last chunk that `cache` has seen, and the last of
        `names`."""
        *before, name = names
        if name not in self._chunks:
            chunk = StoredChunk([_last(layer, start, end) for layer in cache.layers])
            self._make_room(chunk.nbytes, before)
            if self.nbytes + chunk.nbytes > self.capacity:
                return
            self._chunks[name] = StoredChunk([(keys.clone(), values.clone()) for keys, values in chunk.layers])
            self.nbytes += chunk.nbytes
        self._touch(names)

    def trim(self, limit: int) -> None:
        """Drop chunks until at most `limit` bytes are held. Does not change `capacity`."""
        while self._chunks and self.nbytes > limit:
            self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Free everything and store nothing more, because memory is needed elsewhere."""
        self.capacity = 0
        self.trim(0)

    def _make_room(self, size: int, kept: Iterable[bytes]) -> None:
        """Free chunks until `size` bytes fit, except the chunks in `kept`."""
        kept = set(kept)
        while self._chunks and self.nbytes + size > self.capacity and next(iter(self._chunks)) not in kept:
            self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def _touch(self, names: Sequence[bytes]) -> None:
        """Mark chunks as recently used. Later chunks are marked as older, since a chunk is useless without the chunks
        before it."""
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)


def _last(layer: object, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Return views of `layer`'s keys and values for the tokens from `start` to `end`, the end of the seen tokens."""
    assert isinstance(layer, (EvictedLayer, SlidingLayer))
    if isinstance(layer, EvictedLayer):
        return layer.keys[:, :, start:end], layer.values[:, :, start:end]
    held = min(end - start, layer.keys.shape[2])
    return layer.keys[:, :, -held:], layer.values[:, :, -held:]
