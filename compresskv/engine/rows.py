"""The buffers that one layer attends to while decoding.

Rows × KV heads are folded into one axis: a *folded row* is one (setting, KV head) with a length of its own, so settings
of different budgets and heads of different capacities decode in the same call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROUNDING = 32
"""Kept lengths are rounded up to this many tokens, so that few buffers serve many lengths."""


def rounded(tokens: int) -> int:
    """The length of the buffer for so many kept tokens."""
    return -(-tokens // ROUNDING) * ROUNDING


@dataclass(eq=False)
class Bucket:
    """Folded rows of near lengths in one pair of buffers [rows, capacity, head_dim], their kept tokens on the left.

    `lengths` [rows], int32, counts the kept tokens of each row, `longest` at most. A backend writes the new tokens
    either right behind each row's kept ones (flash-attn) or, for all rows, from column `longest` on (sdpa); there is
    always room for the next.
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


Decode = Callable[[Tensor, Tensor, Tensor, Bucket, int, float], Tensor]
"""The decode call of a backend: see `backends.Backend.decode`."""


class FoldedRows:
    """The keys and values that one layer attends to while decoding.

    Built from one `(keys, values, positions)` per folded row, `keys` and `values` [*, head_dim], of which `positions`
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

    def attend(self, decode: Decode, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Append the new token's key and value, then attend to everything kept and generated.

        `decode` does both for one bucket (`Backend.decode`). query [settings, q_heads, 1, d], key and value
        [settings, kv_heads, 1, d] -> [settings, q_heads, d].
        """
        settings, q_heads, _, head_dim = query.shape
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
            outputs.append(decode(query[rows], key[rows], value[rows], bucket, self.new, scaling))
            start = rows.stop
        self.new += 1
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return (out if self.in_order else out[self.place]).view(settings, q_heads, head_dim)

    def forget(self, tokens: int) -> None:
        """Take the last `tokens` new ones back."""
        self.new -= tokens

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings but these (sorted)."""
        staying = [setting * self.kv_heads + head for setting in settings for head in range(self.kv_heads)]
        new_row = {row: place for place, row in enumerate(staying)}
        for bucket in self.buckets:
            bucket.keep([slot for slot, row in enumerate(bucket.rows) if row in new_row])
            bucket.rows = [new_row[row] for row in bucket.rows]
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]
        self._sort()
