"""A cache whose logical length is the prompt's and whose physical length is the budget's.

Rows × KV heads are folded into one axis: a *folded row* is one (setting, KV head) with a length of its own, so settings
of different budgets and heads of different capacities decode in the same call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer, get_layer_types_and_kwargs

from compresskv.errors import UserError
from compresskv.eviction import LayerPrefill

if TYPE_CHECKING:
    from compresskv.attention import Backend

ROUNDING = 32
"""Kept lengths are rounded up to this many tokens, so that few buffers serve many lengths."""


def own(tensor: Tensor) -> Tensor:
    """`tensor` without more memory behind it than it shows: a view, such as of a fused projection, is copied."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def rounded(tokens: int) -> int:
    """The length of the buffer for so many kept tokens."""
    return -(-tokens // ROUNDING) * ROUNDING


@dataclass(eq=False)
class Bucket:
    """Folded rows of near lengths in one pair of buffers [rows, capacity, head_dim], their kept tokens on the left.

    `lengths` [rows], int32, counts the kept tokens of each row, `longest` at most. Where a backend puts the new ones is
    its own affair; there is always room for the next.
    """

    rows: list[int]
    lengths: Tensor
    longest: int
    equal: bool
    keys: Tensor
    values: Tensor
    _gaps: Tensor | None = field(default=None, init=False)

    @property
    def gaps(self) -> Tensor | None:
        """To add to logits if new tokens start at column `longest`: [rows, 1, 1, capacity]; None if no row is shorter.

        0 where a token is, and minus infinity between a row's kept tokens and the new ones.
        """
        if self.equal:
            return None
        if self._gaps is None:
            column = torch.arange(self.keys.shape[1], device=self.keys.device)
            gap = (column >= self.lengths[:, None]) & (column < self.longest)
            self._gaps = self.keys.new_zeros(gap.shape).masked_fill_(gap, float("-inf"))[:, None, None]
        return self._gaps

    def grow(self, tokens: int) -> None:
        """Make the buffers longer."""
        more = self.keys.new_zeros(self.keys.shape[0], tokens, self.keys.shape[2])
        self.keys, self.values = torch.cat([self.keys, more], 1), torch.cat([self.values, more], 1)
        self._gaps = None

    def keep(self, slots: list[int]) -> None:
        """Drop all rows but those in these slots (sorted), in place: they move up into the gaps."""
        self.rows = [self.rows[slot] for slot in slots]
        moves = [(place, slot) for place, slot in enumerate(slots) if place != slot]
        if moves:
            to, source = torch.tensor(moves, device=self.keys.device).T
            for buffer in (self.keys, self.values, self.lengths):
                buffer[to] = buffer[source]
        left = len(slots)
        self.keys, self.values, self.lengths = self.keys[:left], self.values[:left], self.lengths[:left]
        self._gaps = None


class FoldedRows:
    """The keys and values that one layer attends to while decoding.

    Built from one `(keys, values, positions)` a folded row, `keys` and `values` [*, head_dim], of which `positions`
    are copied. Buffers hold the kept length rounded up to 32 and `room` new tokens, and grow by `room` when full.
    """

    def __init__(self, sources: Sequence[tuple[Tensor, Tensor, Tensor]], kv_heads: int, room: int):
        self.kv_heads = kv_heads
        self.room = room
        self.new = 0
        by_size: dict[int, list[int]] = {}
        for row, (_, _, positions) in enumerate(sources):
            by_size.setdefault(rounded(positions.numel()), []).append(row)
        self.buckets = [self._fill(size, rows, sources) for size, rows in sorted(by_size.items())]
        self._sort()

    def _sort(self) -> None:
        """Note where each bucket's rows are among all rows, and where all rows are among the buckets'."""
        order = [row for bucket in self.buckets for row in bucket.rows]
        self.order = torch.tensor(order, device=self.buckets[0].keys.device)
        self.place = self.order.argsort()
        self.in_order = order == list(range(len(order)))

    def _fill(self, size: int, rows: list[int], sources: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Bucket:
        like = sources[0][0]
        shape = (len(rows), size + self.room, like.shape[-1])
        # Zeros, not garbage: a masked NaN would still poison the softmax's weighted sum.
        keys, values = like.new_zeros(shape), like.new_zeros(shape)
        for slot, row in enumerate(rows):
            row_keys, row_values, positions = sources[row]
            torch.index_select(row_keys, 0, positions, out=keys[slot, : positions.numel()])
            torch.index_select(row_values, 0, positions, out=values[slot, : positions.numel()])
        lengths = [sources[row][2].numel() for row in rows]
        return Bucket(
            rows=rows,
            lengths=torch.tensor(lengths, device=like.device, dtype=torch.int32),
            longest=max(lengths),
            equal=len(set(lengths)) == 1,
            keys=keys,
            values=values,
        )

    def source(self, row: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one folded row, the room included: two views [*, head_dim]."""
        for bucket in self.buckets:
            if row in bucket.rows:
                slot = bucket.rows.index(row)
                return bucket.keys[slot], bucket.values[slot]
        raise IndexError(f"no folded row {row}")

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers: kept tokens, their rounding, and the room for new ones."""
        return sum(bucket.keys.nbytes + bucket.values.nbytes for bucket in self.buckets)

    def attend(self, backend: "Backend", query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Append the new token's key and value, then attend to everything kept and generated.

        query [settings, q_heads, 1, d], key and value [settings, kv_heads, 1, d] -> [settings, q_heads, d].
        """
        settings, q_heads, new, head_dim = query.shape
        if new != 1:
            raise UserError("an evicted cache takes one new token at a time: give a new prompt a new cache")
        query = query.reshape(settings * self.kv_heads, -1, head_dim)
        key, value = key.reshape(-1, head_dim), value.reshape(-1, head_dim)
        if not self.in_order:
            query, key, value = query[self.order], key[self.order], value[self.order]
        outputs = []
        start = 0
        for bucket in self.buckets:
            if bucket.longest + self.new == bucket.keys.shape[1]:
                bucket.grow(max(self.room, ROUNDING))
            rows = slice(start, start + len(bucket.rows))
            outputs.append(backend.decode(query[rows], key[rows], value[rows], bucket, self.new, scaling))
            start = rows.stop
        self.new += 1
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return (out if self.in_order else out[self.place]).view(settings, q_heads, head_dim)

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings but these (sorted)."""
        staying = [setting * self.kv_heads + head for setting in settings for head in range(self.kv_heads)]
        new_row = {row: place for place, row in enumerate(staying)}
        for bucket in self.buckets:
            bucket.keep([slot for slot, row in enumerate(bucket.rows) if row in new_row])
            bucket.rows = [new_row[row] for row in bucket.rows]
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]
        self._sort()


class EvictedLayer(CacheLayerMixin):
    """One layer: first the prompt, complete; after eviction, `rows`.

    `prompt_length` None means that the first forward brings the whole prompt. `window` queries at its end are kept
    for scoring. When the prompt is complete, `on_prefill(prefill)` is called once.
    """

    is_sliding = False

    def __init__(self, index: int, window: int, prompt_length: int | None, on_prefill: Callable[[LayerPrefill], None]):
        super().__init__()
        self.index = index
        self.window = window
        self.prompt_length = prompt_length
        self.on_prefill = on_prefill
        self.seen = 0
        self.token_bytes = 0
        self.queries: Tensor | None = None
        self.rows: FoldedRows | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the prompt as it is, or room for all of it if this is but its first chunk."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.token_bytes = 2 * key_states.shape[-1] * key_states.itemsize
        self.is_initialized = True
        chunk = key_states.shape[2]
        if self.prompt_length is None:
            self.prompt_length = chunk
        if self.prompt_length > chunk:
            shape = (*key_states.shape[:2], self.prompt_length, key_states.shape[3])
            self.keys, self.values = key_states.new_empty(shape), key_states.new_empty(shape)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to; the keys carry a reference to this layer (`cache_layer`)."""
        start, self.seen = self.seen, self.seen + key_states.shape[2]
        if self.rows is None:
            if key_states.shape[0] != 1:
                raise UserError("eviction takes one prompt at a time: pass a batch of 1")
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            if self.keys is None:
                self.keys, self.values = own(key_states), own(value_states)
            else:
                self.keys[:, :, start : self.seen] = key_states
                self.values[:, :, start : self.seen] = value_states
            key_states, value_states = self.keys[:, :, : self.seen], self.values[:, :, : self.seen]
        key_states.cache_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def observe(self, queries: Tensor, scaling: float) -> None:
        """Remember the last queries of the prompt, [1, q_heads, new, d]; when it is complete, hand it over."""
        tail = queries[0, :, -self.window :]
        if self.queries is not None:
            tail = torch.cat([self.queries, tail], dim=1)[:, -self.window :]
        # A copy: a view would keep the queries of the whole prompt alive.
        self.queries = tail.clone()
        if self.seen == self.prompt_length:
            prefill = LayerPrefill(self.index, self.queries, self.keys[0], self.values[0], scaling)
            self.keys = self.values = self.queries = None  # type: ignore[assignment]
            self.on_prefill(prefill)

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones included: positions go on from here."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these settings' rows only."""
        assert self.rows is not None
        self.rows.keep_settings(indices.tolist())


class SlidingLayer(DynamicSlidingWindowLayer):
    """transformers' own, but without the whole prompt behind the view of its last tokens."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        whole = super().update(key_states, value_states, *args, **kwargs)
        if key_states.shape[2] > 1:
            self.keys, self.values = own(self.keys), own(self.values)
        return whole


class EvictedCache(Cache):
    """Layers that evict, and transformers' own for sliding-window layers, which are outside the budget.

    `evicting` lists the former in model order, `sliding` the others by their place in the model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        window: int,
        prompt_length: int | None,
        on_prefill: Callable[[LayerPrefill], None],
    ):
        kinds, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        layers: list[CacheLayerMixin] = []
        self.evicting: list[EvictedLayer] = []
        for kind, kwargs in zip(kinds, arguments, strict=True):
            if kind == "full_attention":
                layer = EvictedLayer(len(self.evicting), window, prompt_length, on_prefill)
                self.evicting.append(layer)
                layers.append(layer)
            elif kind == "sliding_attention":
                layers.append(SlidingLayer(**kwargs))
            else:
                raise UserError(f"the model has {kind} layers, which eviction does not support: choose another model")
        super().__init__(layers=layers)
        self.config = config

    @property
    def sliding(self) -> dict[int, SlidingLayer]:
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, SlidingLayer)}

    def allocated_bytes(self, counts: list[list[int]], room: int) -> int:
        """What `kept_bytes` become in buffers: rounded up to 32 tokens, and with `room` for new ones."""
        return self.kept_bytes([[rounded(count) + room for count in heads] for heads in counts])

    @property
    def sliding_bytes(self) -> int:
        """Bytes that the sliding-window layers hold."""
        return sum(
            tensor.untyped_storage().nbytes()
            for layer in self.sliding.values()
            for tensor in (layer.keys, layer.values)
        )

    def kept_bytes(self, counts: list[list[int]]) -> int:
        """Bytes of the keys and values of `counts` tokens, [layer][KV head]: 2 · Σ counts · head_dim · itemsize."""
        return sum(sum(heads) * layer.token_bytes for heads, layer in zip(counts, self.evicting, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the layers that evict, after eviction."""
        return sum(layer.rows.nbytes for layer in self.evicting if layer.rows is not None)
