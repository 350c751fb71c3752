"""The buffers that one layer attends to while decoding, for kernels that want rows of equal length.

Rows × KV heads are folded into one axis: a *folded row* is one (setting, KV head) with its own length, so settings of
different budgets and heads of different capacities decode in the same call. Here rows of similar lengths share one
buffer (a bucket) and one call; ragged.py has the layout for GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDING = 32
"""Kept lengths are rounded up to this many tokens, so that few buffers serve many lengths."""


def rounded(tokens: int) -> int:
    """Return the length of the buffer for this many kept tokens."""
    return -(-tokens // ROUNDING) * ROUNDING


def by_size(counts: Iterable[int]) -> Counter[int]:
    """How many rows have a buffer of each length, given their kept tokens."""
    return Counter(map(rounded, counts))


@dataclass(frozen=True)
class Source:
    """The source of a layer's folded rows: `keys` and `values` [heads, tokens, head_dim].

    `rows` gives, for each folded row, its head and the positions [*] of its tokens, int64. Rows are ordered by setting,
    then by KV head; each setting has `kv_heads` rows.
    """

    keys: Tensor
    values: Tensor
    rows: Sequence[tuple[int, Tensor]]
    kv_heads: int


class Group(Protocol):
    """The folded rows of one or more layers, from which settings leave together."""

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings except these (sorted)."""
        ...

    def forget(self, tokens: int) -> None:
        """Remove the last `tokens` new tokens of all rows."""
        ...

    def replayed(self) -> None:
        """Count a new token of each row that a replayed step has added."""
        ...

    def evict(self, kept: Sequence[Sequence[Tensor | None]]) -> None:
        """Keep only these tokens of each row, by layer and row: sorted indices among the held tokens, int64; None for
        all.

        The rows then have no new tokens.
        """
        ...


class LayerRows(Protocol):
    """The folded rows of one layer, in the layout of a backend."""

    @property
    def group(self) -> Group: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers: kept tokens, their rounding, and the room for new tokens."""
        ...

    def held(self, row: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all tokens of a row, in order of position: [tokens, head_dim] each."""
        ...


@dataclass(eq=False)
class Bucket:
    """Folded rows of similar lengths in one pair of buffers [rows, capacity, head_dim], with kept tokens on the left.

    `lengths` [rows], int32, counts the kept tokens of each row; `longest` is the maximum. New tokens of all rows are
    written from column `longest` on; the buffers grow when they are full.
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
        """Mask to add to the logits: [rows, 1, 1, capacity]; None if no row is shorter than `longest`.

        It is 0 at tokens, and minus infinity between the kept tokens and the new tokens of a row.
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

    def held(self, slot: int, new: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the kept tokens of a row, and of its `new` tokens: views if rows have no
        gaps."""
        kept = slice(self.longest + new) if self.equal else self.columns(slot, new)
        return self.keys[slot, kept], self.values[slot, kept]

    def columns(self, slot: int, new: int) -> Tensor:
        """Return the columns that hold the tokens of a row: [tokens], int64."""
        column = torch.arange(self.longest + new, device=self.keys.device)
        if self.equal:
            return column
        return column[(column < int(self.lengths[slot])) | (column >= self.longest)]

    def evict(self, kept: Sequence[Tensor | None], new: int) -> None:
        """Keep these tokens of each row, in place, and move them to the left."""
        columns = [self.columns(slot, new) for slot in range(len(self.rows))]
        chosen = [where if one is None else where[one] for where, one in zip(columns, kept, strict=True)]
        lengths = [one.numel() for one in chosen]
        longest = max(lengths)
        index = torch.stack([F.pad(one, (0, longest - one.numel())) for one in chosen])[..., None]
        for buffer in (self.keys, self.values):
            buffer[:, :longest] = buffer.gather(1, index.expand(-1, -1, buffer.shape[-1]))
        self.lengths = torch.tensor(lengths, device=self.keys.device, dtype=torch.int32)
        self.longest, self.equal, self._gaps = longest, len(set(lengths)) == 1, None

    def keep(self, slots: list[int]) -> None:
        """Drop all rows except the rows in these slots (sorted), in place, and close the gaps."""
        if len(slots) == len(self.rows):
            return
        self.rows = [self.rows[slot] for slot in slots]
        moves = [(place, slot) for place, slot in enumerate(slots) if place != slot]
        if moves:
            to, source = torch.tensor(moves, device=self.keys.device).T
            for buffer in (self.keys, self.values, self.lengths):
                buffer[to] = buffer[source]
        left = len(slots)
        self.keys, self.values, self.lengths = self.keys[:left], self.values[:left], self.lengths[:left]
        self._gaps = None


DecodeBucket = Callable[[Tensor, Tensor, Tensor, Bucket, int, float], Tensor]
"""Function that appends new tokens to each row of a bucket and attends: see `backends.SDPA.decode_bucket`."""


class BucketedRows:
    """The keys and values that one layer attends to while decoding, in buckets.

    Buffers hold the kept length rounded up to 32 and `room` new tokens, and grow by `room` when full.
    """

    def __init__(self, source: Source, room: int):
        self.kv_heads = source.kv_heads
        self.room = room
        self.new = 0
        by_size: dict[int, list[int]] = {}
        for row, (_, positions) in enumerate(source.rows):
            by_size.setdefault(rounded(positions.numel()), []).append(row)
        self.buckets = [self._fill(size, rows, source) for size, rows in sorted(by_size.items())]
        self._sort()

    def _sort(self) -> None:
        """Compute the mapping between bucket order and row order in both directions."""
        order: list[int] = []
        for bucket in self.buckets:
            order += bucket.rows
        self.order = torch.tensor(order, device=self.buckets[0].keys.device)
        self.place = self.order.argsort()
        self.in_order = order == list(range(len(order)))

    def _fill(self, size: int, rows: list[int], source: Source) -> Bucket:
        like = source.keys
        shape = (len(rows), size + self.room, like.shape[-1])
        keys, values = like.new_empty(shape), like.new_empty(shape)
        lengths = []
        for slot, row in enumerate(rows):
            head, positions = source.rows[row]
            lengths.append(positions.numel())
            torch.index_select(source.keys[head], 0, positions, out=keys[slot, : lengths[-1]])
            torch.index_select(source.values[head], 0, positions, out=values[slot, : lengths[-1]])
            # Zeros, because a masked NaN would still make the softmax's weighted sum NaN.
            keys[slot, lengths[-1] :] = values[slot, lengths[-1] :] = 0
        return Bucket(
            rows=rows,
            lengths=torch.tensor(lengths, device=like.device, dtype=torch.int32),
            longest=max(lengths),
            equal=len(set(lengths)) == 1,
            keys=keys,
            values=values,
        )

    @property
    def group(self) -> Group:
        return self

    @property
    def nbytes(self) -> int:
        return sum(bucket.keys.nbytes + bucket.values.nbytes for bucket in self.buckets)

    def attend(self, decode: DecodeBucket, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Append the keys and values of new tokens. Each new token attends to all kept and generated tokens up to
        itself.

        query [settings, q_heads, new, d], key and value [settings, kv_heads, new, d] -> [settings, new, q_heads, d].
        """
        settings, q_heads, new, head_dim = query.shape
        query = query.reshape(settings * self.kv_heads, -1, new, head_dim)
        key, value = key.reshape(-1, new, head_dim), value.reshape(-1, new, head_dim)
        if not self.in_order:
            query, key, value = query[self.order], key[self.order], value[self.order]
        outputs = []
        start = 0
        for bucket in self.buckets:
            if (lacking := bucket.longest + self.new + new - bucket.keys.shape[1]) > 0:
                bucket.grow(max(self.room, ROUNDING, lacking))
            rows = slice(start, start + len(bucket.rows))
            outputs.append(decode(query[rows], key[rows], value[rows], bucket, self.new, scaling))
            start = rows.stop
        self.new += new
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        out = out if self.in_order else out[self.place]
        return out.view(settings, q_heads, new, head_dim).transpose(1, 2)

    def replayed(self) -> None:
        raise NotImplementedError("buckets of the CPU have no fixed shapes to replay")

    def forget(self, tokens: int) -> None:
        """Remove the last `tokens` new tokens."""
        self.new -= tokens

    def held(self, row: int) -> tuple[Tensor, Tensor]:
        bucket = next(bucket for bucket in self.buckets if row in bucket.rows)
        return bucket.held(bucket.rows.index(row), self.new)

    def evict(self, kept: Sequence[Sequence[Tensor | None]]) -> None:
        (of_rows,) = kept
        for bucket in self.buckets:
            bucket.evict([of_rows[row] for row in bucket.rows], self.new)
        self.new = 0

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings except these (sorted)."""
        new_row: dict[int, int] = {}
        for setting in settings:
            for head in range(self.kv_heads):
                new_row[setting * self.kv_heads + head] = len(new_row)
        for bucket in self.buckets:
            bucket.keep([slot for slot, row in enumerate(bucket.rows) if row in new_row])
            bucket.rows = [new_row[row] for row in bucket.rows]
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]
        self._sort()
