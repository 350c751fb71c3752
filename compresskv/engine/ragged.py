"""The layout of folded rows on a GPU, where the number of launches matters more than padding.

All rows of a layer are in one storage of slots [slots, head_dim]. Each row has its own capacity, and the longest is
last. A table has the first slot and the number of tokens of each row, for all layers of a device. A step, or a setting
that leaves, changes the table in one or two launches and moves no keys.

`RaggedTable` is all that flash-attn needs: a view of the storage whose batch stride is one slot lets one call address
rows of any length (`cache_batch_idx`). `VarlenTable` adds what torch's `varlen_attn` reads: the slots of new tokens and
the tokens of each row. `MaskedTable` adds, for torch's sdpa, buckets of equal capacity and one mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskv.engine.rows import Group, Source, by_size, rounded

Capacities = Callable[[Mapping[int, int], int], dict[int, int]]
"""Function of the number of rows by kept tokens (rounded up to 32) and of the room for new tokens. It returns the slots
of a row by kept tokens.
"""


def exact_capacities(rows: Mapping[int, int], room: int) -> dict[int, int]:
    """Return the kept tokens rounded up to 32, plus the room: the minimum that any layout holds."""
    return {size: size + room for size in rows}


MOST_BUCKETS = 7
MOST_PADDING = 1.25
ALIGNMENT = 8
"""The strides of a mask, in elements, must be a multiple of this. CUDA's efficient kernel copies other masks."""


def bucketed_capacities(rows: Mapping[int, int], room: int) -> dict[int, int]:
    """Return capacities of few distinct sizes, so that few calls serve all rows of a layer.

    Neighbouring sizes are merged, the cheapest merge first, until seven sizes are left. Merging continues as long as
    the allocated memory is at most 1.25 times the needed memory.
    """
    room = -(-room // ALIGNMENT) * ALIGNMENT
    sizes = sorted(rows)
    numbers = [rows[size] for size in sizes]
    needed = sum(number * (size + room) for size, number in rows.items())
    limit = MOST_PADDING * needed
    allocated = needed
    while len(sizes) > 1:
        added = [count * (larger - smaller) for count, (smaller, larger) in zip(numbers, pairwise(sizes), strict=False)]
        place = min(range(len(added)), key=added.__getitem__)
        if len(sizes) <= MOST_BUCKETS and allocated + added[place] > limit:
            break
        allocated += added[place]
        numbers[place : place + 2] = [numbers[place] + numbers[place + 1]]
        del sizes[place]
    return {size: next(larger for larger in sizes if larger >= size) + room for size in rows}


class RaggedRows:
    """The folded rows of one layer: keys and values of all rows, [slots, head_dim], and the layer's part of a table."""

    def __init__(self, table: "RaggedTable", layer: int, keys: Tensor, values: Tensor):
        self.table = table
        self.layer = layer
        self.keys = keys
        self.values = values
        self.new = 0

    @property
    def group(self) -> Group:
        return self.table

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def held(self, row: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all tokens of a row: [tokens, head_dim] each."""
        first = int(self.table.begin[self.layer, row])
        slots = slice(first, first + int(self.table.counts[self.layer, row]) + self.table.new)
        return self.keys[slots], self.values[slots]

    def advance(self, tokens: int) -> None:
        """Make room for `tokens` more in each row. The first layer does it for all layers."""
        if self.new == self.table.new:
            self.table.advance(tokens)
        self.new += tokens

    def append(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Write new keys and values [..., head_dim] to these `slots` [*], in the same order."""
        self.keys.index_copy_(0, slots, key.reshape(-1, key.shape[-1]))
        self.values.index_copy_(0, slots, value.reshape(-1, value.shape[-1]))

    def overlapping(self, storage: Tensor) -> Tensor:
        """View `storage` from every slot at once, [slots, longest row, 1, head_dim]: a row begins at its start.

        No memory is copied. Slots that are too close to the end for the longest row are left out.
        """
        slots, head_dim = storage.shape
        longest = self.table.longest[self.layer]
        return storage.as_strided((slots - longest + 1, longest, 1, head_dim), (head_dim, head_dim, head_dim, 1))


class RaggedTable:
    """The start and the number of tokens of the folded rows of all layers on one device: [layers, rows].

    All layers have the same number of KV heads. `sources` (one per layer) is emptied while their tokens are copied, so
    that no more than one layer is held twice.
    """

    def __init__(self, sources: list[Source], room: int, capacities: Capacities = exact_capacities):
        self.kv_heads = sources[0].kv_heads
        self.capacities = capacities
        self.rows = [RaggedRows(self, layer, source.keys, source.values) for layer, source in enumerate(sources)]
        self._fill(sources, room)

    def _fill(self, sources: list[Source], room: int) -> None:
        """Copy the tokens of all rows into new storage."""
        self.room, self.new, self.step = room, 0, 0
        # On the host, [layers, rows].
        self.counts = torch.tensor([[positions.numel() for _, positions in source.rows] for source in sources])
        self.sizes = torch.tensor([self._slots(row, room) for row in self.counts.tolist()])
        by_size = self.sizes.argsort(dim=1, stable=True)
        ordered = self.sizes.gather(1, by_size)
        self.begin = torch.empty_like(self.sizes).scatter_(1, by_size, ordered.cumsum(1) - ordered)
        self.longest, self.slots = self.sizes.amax(1).tolist(), self.sizes.sum(1).tolist()
        heads = torch.tensor([[head for head, _ in source.rows] for source in sources])
        shift = self.begin - (self.counts.cumsum(1) - self.counts)
        plan = torch.stack([self.counts, self.begin, heads, shift]).to(sources[0].keys.device)
        self._begin(plan[0], plan[1])
        for layer in range(len(sources)):
            self._fill_layer(layer, sources.pop(0), plan[:, layer])

    def _slots(self, counts: list[int], room: int) -> list[int]:
        """The slots of each row of a layer."""
        slots = self.capacities(by_size(counts), room)
        return [slots[rounded(count)] for count in counts]

    def _fill_layer(self, layer: int, source: Source, plan: Tensor) -> None:
        positions = torch.cat([positions for _, positions in source.rows])
        head, shift = plan[2:].repeat_interleave(plan[0], 1, output_size=positions.numel())
        slots = shift.add_(torch.arange(positions.numel(), device=shift.device))
        keys, values = source.keys[head, positions], source.values[head, positions]
        # Zeros, because a masked NaN would still make the softmax's weighted sum NaN.
        shape = (self.slots[layer], keys.shape[-1])
        self.rows[layer].keys = keys.new_zeros(shape).index_copy_(0, slots, keys)
        self.rows[layer].values = values.new_zeros(shape).index_copy_(0, slots, values)
        self._fill_mask(layer, slots)

    def _begin(self, counts: Tensor, begin: Tensor) -> None:
        """Store, on the device, the number of tokens of each row and the slot of its first token: [layers, rows]."""
        self.lengths, self.starts = counts.int(), begin.int()

    def _fill_mask(self, layer: int, slots: Tensor) -> None:
        """Unmask these slots, which hold the kept tokens of `layer`."""

    def advance(self, tokens: int) -> None:
        """Begin a step that adds this many tokens to every row."""
        if self.new + tokens > self.room:
            self._grow(tokens)
        self._count(self.step)
        self.step = tokens
        self.new += tokens

    def _count(self, tokens: int) -> None:
        """Add the previous step's `tokens` to `lengths`; `lengths` does not count the tokens of this step. If negative,
        forget them."""
        if tokens:
            self.lengths += tokens

    def replayed(self) -> None:
        """Count a step of one token that a graph replayed: its operations changed the tensors."""
        self.new += 1
        for rows in self.rows:
            rows.new = self.new

    def forget(self, tokens: int) -> None:
        """Remove the last `tokens` new tokens of all rows."""
        self._count(self.step - tokens)
        self.step = 0
        # Tokens that were new when the storage grew are already counted.
        self.counts -= max(tokens - self.new, 0)
        self.new = max(self.new - tokens, 0)
        for rows in self.rows:
            rows.new = self.new

    def evict(self, kept: Sequence[Sequence[Tensor | None]]) -> None:
        """Keep these tokens of each row, by layer and row (None: all), and move them to the row's beginning."""
        held = self.counts + self.new
        self.new = self.step = 0
        for layer, (rows, of_rows) in enumerate(zip(self.rows, kept, strict=True)):
            rows.new = 0
            device, begin = rows.keys.device, self.begin[layer].tolist()
            chosen = [
                torch.arange(count, device=device) if one is None else one
                for one, count in zip(of_rows, held[layer].tolist(), strict=True)
            ]
            self.counts[layer] = torch.tensor([one.numel() for one in chosen])
            source = torch.cat([one + first for one, first in zip(chosen, begin, strict=True)])
            to = torch.cat(
                [torch.arange(f, f + one.numel(), device=device) for one, f in zip(chosen, begin, strict=True)]
            )
            for storage in (rows.keys, rows.values):
                storage.index_copy_(0, to, storage.index_select(0, source))
        self.room = int((self.sizes - self.counts).min())
        self._counted()

    def _counted(self) -> None:
        """Update the number of tokens of each row on the device, after an eviction."""
        self.lengths = self.counts.to(self.lengths.device).int()

    def _grow(self, tokens: int) -> None:
        """Copy all rows to new storage with room for at least `tokens` more."""
        sources = []
        for rows, begin, counts in zip(self.rows, self.begin.tolist(), self.counts.tolist(), strict=True):
            ranges = []
            for first, count in zip(begin, counts, strict=True):
                ranges.append((0, torch.arange(first, first + count + self.new, device=rows.keys.device)))
            sources.append(Source(rows.keys[None], rows.values[None], ranges, self.kv_heads))
            rows.new = 0
        self._fill(sources, max(self.room, rounded(tokens)))

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings except these (sorted). Their keys and values stay in place, unused."""
        first = torch.tensor(settings)[:, None] * self.kv_heads
        staying = (first + torch.arange(self.kv_heads)).flatten()
        self.counts, self.sizes, self.begin = self.counts[:, staying], self.sizes[:, staying], self.begin[:, staying]
        self._keep_rows(staying)

    def _keep_rows(self, staying: Tensor) -> None:
        staying = staying.to(self.starts.device)
        self.lengths, self.starts = self.lengths[:, staying], self.starts[:, staying]


MOST_SPLITS = 8
UNEVEN = 8


class VarlenTable(RaggedTable):
    """A table for torch's `varlen_attn`: the slots of new tokens are computed once a step, since it appends nothing.

    `write` [layers, rows * new], int64: the slots of the step's new tokens, by row. `used` [layers, rows], int32: the
    tokens of each row, including new tokens. `firsts` [layers, rows + 1], int32: the first slot of each row; the kernel
    does not read the last entry. `queries` [rows + 1], int32: where each row's new tokens begin among the new tokens of
    all rows. `splits`: into how many parts the kernel splits the keys of a layer's rows; None lets it choose.

    The kernel chooses by the number of rows and the longest one. If one row is far longer than the mean, a step waits
    for that row, so all rows are split. `MOST_SPLITS` and `UNEVEN` are estimates: they were not measured on a GPU.
    """

    write: Tensor
    used: Tensor
    firsts: Tensor
    queries: Tensor
    splits: list[int | None]

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        device, rows = self.starts.device, self.starts.shape[1]
        self.used = self.lengths + tokens
        self.write = (self.starts + self.lengths).long()
        if tokens > 1:
            self.write = (self.write[..., None] + torch.arange(tokens, device=device)).flatten(1)
        self.firsts = F.pad(self.starts, (0, 1))
        self.queries = torch.arange(0, rows * tokens + 1, tokens, device=device, dtype=torch.int32)

    def _fill(self, sources: list[Source], room: int) -> None:
        super()._fill(sources, room)
        self._split()

    def _keep_rows(self, staying: Tensor) -> None:
        super()._keep_rows(staying)
        self._split()

    def _split(self) -> None:
        means = self.sizes.double().mean(1).tolist()
        uneven = [longest > UNEVEN * mean for longest, mean in zip(self.longest, means, strict=True)]
        self.splits = [MOST_SPLITS if of_layer else None for of_layer in uneven]


@dataclass(frozen=True)
class MaskedBucket:
    """Consecutive rows of one capacity: views of the storage, [rows, capacity, head_dim], and of the mask.

    `mask` [rows, 1, 1, capacity] is added to the logits. `rows`: indices of the bucket's rows among all buckets' rows.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    mask: Tensor


LEFT_BEHIND = 0.25
"""Share of a table's rows that may have left while its buckets still compute them."""


class MaskedTable(RaggedTable):
    """A table for sdpa: rows of one capacity form a bucket, and a mask shows which slots hold a token.

    Shapes stay the same from step to step. Rows of settings that left are still computed, without using the result,
    until a share `LEFT_BEHIND` of the rows has left. Then the buckets are built again. Each bucket then reaches from
    its first to its last row that stays.
    """

    mask: Tensor
    buckets: list[list[MaskedBucket]]
    _views: dict[tuple[int, int, int, int], tuple[Tensor, Tensor, Tensor]]

    def __init__(self, sources: list[Source], room: int):
        super().__init__(sources, room, bucketed_capacities)

    def _fill(self, sources: list[Source], room: int) -> None:
        super()._fill(sources, room)
        self._views = {}  # the storage is new
        self._arrange()

    def _begin(self, counts: Tensor, begin: Tensor) -> None:
        ends = torch.tensor(self.slots).cumsum(0)
        self.first = [0, *ends.tolist()]
        device, dtype = self.rows[0].keys.device, self.rows[0].keys.dtype
        self.mask = torch.full((self.first[-1],), float("-inf"), device=device, dtype=dtype)
        write = counts + begin
        self._place(torch.stack([begin, write, write + (ends - torch.tensor(self.slots)).to(device)[:, None]]))

    def _place(self, slots: Tensor) -> None:
        """Store three slots for each row, [3, layers, rows]: its first slot, and the slot of its first new token in its
        layer's storage and in the mask of all layers.
        """
        self._slots_of_rows = slots
        self.start, self.write, self.unmask = slots

    def _fill_mask(self, layer: int, slots: Tensor) -> None:
        self._mask_of(layer).index_fill_(0, slots, 0)

    def _mask_of(self, layer: int) -> Tensor:
        return self.mask[self.first[layer] : self.first[layer + 1]]

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.mask.index_fill_(0, self._following(self.unmask).flatten(), 0)  # all layers at once

    def _following(self, first: Tensor) -> Tensor:
        """Return the slots of this step's new tokens, given the slots of the first new tokens [...]: [..., new]."""
        if self.step == 1:
            return first[..., None]
        return first[..., None] + torch.arange(self.step, device=first.device)

    def new_slots(self, layer: int) -> Tensor:
        """Return the slots of this step's new tokens in the layer's storage, by row: [rows * new]."""
        return self._following(self.write[layer]).flatten()

    def causal_mask(self, layer: int, bucket: MaskedBucket) -> Tensor:
        """Return this step's causal mask over `bucket`: [rows, 1, new, capacity], to add to the logits."""
        if self.step == 1:
            return bucket.mask
        row = self.order[layer][bucket.rows]
        last = self._following(self.write[layer] - self.start[layer])[row]
        column = torch.arange(bucket.mask.shape[-1], device=self.mask.device)
        return bucket.mask.masked_fill((column > last[..., None])[:, None], float("-inf"))

    def _count(self, tokens: int) -> None:
        if tokens:
            self.write += tokens
            self.unmask += tokens

    def forget(self, tokens: int) -> None:
        super().forget(tokens)
        for token in range(tokens):
            self.mask.index_fill_(0, (self.unmask + token).flatten(), float("-inf"))

    def _counted(self) -> None:
        device = self.mask.device
        ends = self.begin + self.counts
        first = torch.tensor(self.first[:-1])[:, None]
        self._slots_of_rows[1:] = torch.stack([ends, ends + first]).to(device)
        sizes, counts = self.sizes.flatten(), self.counts.flatten()
        offset = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        slots = (self.begin + first).flatten().repeat_interleave(sizes) + offset
        visible = torch.zeros(slots.shape, dtype=self.mask.dtype)
        visible.masked_fill_(offset >= counts.repeat_interleave(sizes), float("-inf"))
        self.mask.index_copy_(0, slots.to(device), visible.to(device))

    def _keep_rows(self, staying: Tensor) -> None:
        device, rows = self.mask.device, self.start.shape[1]
        chosen = staying.to(device)
        self._place(self._slots_of_rows[..., chosen])
        if len(staying) <= self.enough:
            self._arrange()
            return
        # Each row that left is replaced by the row before it.
        row_now = torch.searchsorted(staying, torch.arange(rows), right=True).sub_(1).clamp_(min=0).to(device)
        self._set_order(row_now[self.orders], self.place[:, chosen])
        self.in_order = [False] * len(self.rows)

    def _set_order(self, orders: Tensor, place: Tensor) -> None:
        """Store the row at each place in the buckets of all layers, [places], and the inverse mapping, [layers,
        rows]."""
        self.orders, self.place = orders, place
        self.order = orders.split(self.places)

    def _arrange(self) -> None:
        """Build the buckets of each layer, and the mapping between bucket order and row order in both directions.

        A bucket reaches from the first to the last of its rows. Each row that left is replaced by the row before it.
        """
        by_place = self.begin.argsort(1)
        begin, sizes = self.begin.gather(1, by_place), self.sizes.gather(1, by_place)
        differs = sizes[:, 1:] != sizes[:, :-1]
        ends = F.pad(differs, (0, 1), value=True)
        # The first slot of each row's bucket; slots rise from row to row.
        first = begin.masked_fill(~F.pad(differs, (1, 0), value=True), -1).cummax(1).values
        place = (begin - first) // sizes
        rows = torch.where(ends, place + 1, 0)  # of a bucket, at its last row
        place += rows.cumsum(1) - rows
        totals = rows.sum(1, keepdim=True)
        repeats = torch.cat([place, totals], 1).diff()
        order = by_place.flatten().repeat_interleave(repeats.flatten())
        of_row = torch.empty_like(place).scatter_(1, by_place, place)
        index = torch.cat([order, of_row.flatten()]).to(self.mask.device)
        self.places = totals.flatten().tolist()
        self._set_order(index[: len(order)], index[len(order) :].view_as(of_row))
        self.enough = int(by_place.shape[1] * (1 - LEFT_BEHIND))
        self.in_order = ((repeats == 1) & (by_place == torch.arange(by_place.shape[1]))).all(1).tolist()
        self._arrange_buckets(ends.nonzero()[:, 0].tolist(), *(each[ends].tolist() for each in (first, sizes, rows)))

    def _arrange_buckets(self, layers: list[int], first: list[int], sizes: list[int], rows: list[int]) -> None:
        """Build buckets from their layers, first slots, slots of a row, and rows; unchanged views are used again."""
        before, self._views = self._views, {}
        self.buckets = [[] for _ in self.rows]
        for key in zip(layers, first, sizes, rows, strict=True):
            layer, _, _, count = key
            views = self._views[key] = before.get(key) or self._view(*key)
            base = self.buckets[layer][-1].rows.stop if self.buckets[layer] else 0
            self.buckets[layer].append(MaskedBucket(slice(base, base + count), *views))

    def _view(self, layer: int, first: int, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, values and mask of `count` rows of `size` slots from slot `first` on."""
        slots = slice(first, first + count * size)
        keys, values = self.rows[layer].keys[slots], self.rows[layer].values[slots]
        mask = self._mask_of(layer)[slots]
        return keys.view(count, size, -1), values.view(count, size, -1), mask.view(count, 1, 1, size)
