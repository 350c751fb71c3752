"""What prompts that begin alike share: the keys and values of whole chunks, each computed once.

With a chunked prefill, a whole chunk's keys and values depend on the tokens up to its end and on nothing else but, in
some models, the RoPE of the whole prompt's length; and in every prompt they come from operations of the same shapes:
those of an earlier prompt are bit for bit the ones that would be computed. Scores are not shared: they look at a
prompt's last queries, which are computed for each prompt. Where an observer looks at all queries, all are computed.
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
    """A name for each whole chunk of `ids` [prompt], int64: equal where all tokens up to its end are equal.

    And where `rotary.regime` of the two prompts is, if it is given.
    """
    names = []
    digest = hashlib.sha256(b"".join(number.to_bytes(8, "little") for number in (chunk, *regime)))
    for part in ids.cpu().split(chunk)[: ids.numel() // chunk]:
        digest.update(part.numpy().tobytes())
        names.append(digest.digest())
    return names


def in_prefix_order(names: Mapping[Id, Sequence[bytes]]) -> list[Id]:
    """Prompts, given by the `names` of their chunks, so that those that begin alike follow each other.

    A branch comes where its first prompt was, and prompts that share nothing keep their order. The chunks that a prompt
    shares with any before it are then those that it shares with the one before it.
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

    A layer with a sliding window has no more of its last tokens than the window holds.
    """

    layers: Sequence[tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class PrefixStore:
    """Chunks of earlier prompts, up to `capacity` bytes: the least recently used go first.

    One store serves one model under one attention backend. `computed` and `reused` count prompt tokens.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.nbytes = 0
        self.computed = 0
        self.reused = 0
        self._chunks: OrderedDict[bytes, StoredChunk] = OrderedDict()

    def restore(self, cache: EvictedCache, names: Sequence[bytes], chunk: int, length: int) -> int:
        """Fill the empty `cache` with those first chunks of a prompt of `length` tokens that are here.

        Returns how many tokens these are: never the last ones, whose logits and queries are needed, and none where an
        observer looks at the queries of all.
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
        """Keep the chunk from `start` to `end`, the last that `cache` has seen and the last of `names`, if it fits."""
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
        """Hold at most `limit` bytes, for now."""
        while self._chunks and self.nbytes > limit:
            self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Let go of everything, and take nothing more: memory is needed elsewhere."""
        self.capacity = 0
        self.trim(0)

    def _make_room(self, size: int, kept: Iterable[bytes]) -> None:
        """Let go of chunks until `size` bytes fit, except of those in `kept`."""
        kept = set(kept)
        while self._chunks and self.nbytes + size > self.capacity and next(iter(self._chunks)) not in kept:
            self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def _touch(self, names: Sequence[bytes]) -> None:
        """These are in use; none before the one that follows it, without which nobody can use it."""
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)


def _last(layer: object, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Views of the keys and values that `layer` has of the tokens from `start` to `end`, the last it has seen."""
    assert isinstance(layer, (EvictedLayer, SlidingLayer))
    if isinstance(layer, EvictedLayer):
        return layer.keys[:, :, start:end], layer.values[:, :, start:end]
    held = min(end - start, layer.keys.shape[2])
    return layer.keys[:, :, -held:], layer.values[:, :, -held:]
