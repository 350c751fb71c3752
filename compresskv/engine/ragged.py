"""The layout of folded rows on a GPU, where the number of launches matters more than padding.

All rows of a layer are in one storage of slots [slots, head_dim]. Each row has its own capacity, and the longest is
last. A table has the first slot and the number of tokens of each row, for all layers of a device. A step, or a setting
that leaves, changes the table in one or two launches and moves no keys.

`RaggedTable` is all that flash-attn needs: a view of the storage whose batch stride is one slot lets one call address
rows of any length (`cache_batch_idx`). `VarlenTable` adds what torch's `varlen_attn` reads: the slots of new tokens and
the tokens of each row. `MaskedTable` adds, for torch's sdpa, buckets of equal capacity and one mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskv.engine.rows import Group, Source, rounded

Capacities = Callable[[Sequence[int], int], list[int]]
"""Function from the kept tokens of a layer's folded rows, and the room for new ones, to the slots of each row."""


def exact_capacities(counts: Sequence[int], room: int) -> list[int]:
    """Return the kept tokens rounded up to 32, plus the room: the minimum that any layout holds."""
    return [rounded(count) + room for count in counts]


MOST_BUCKETS = 7
MOST_PADDING = 1.25
ALIGNMENT = 8
"""The strides of a mask, in elements, must be a multiple of this. CUDA's efficient kernel copies other masks."""


def bucketed_capacities(counts: Sequence[int], room: int) -> list[int]:
    """Return capacities of few distinct sizes, so that few calls serve all rows of a layer.

    Neighbouring sizes are merged, the cheapest first, until seven are left, and further as long as at most 1.25 times
    the needed memory is allocated.
    """
    room = -(-room // ALIGNMENT) * ALIGNMENT
    exact = [rounded(count) for count in counts]
    sizes = sorted(set(exact))
    rows = [exact.count(size) for size in sizes]
    needed = sum(exact) + room * len(exact)
    limit = MOST_PADDING * needed
    allocated = needed
    while len(sizes) > 1:
        added = [count * (larger - smaller) for count, (smaller, larger) in zip(rows, pairwise(sizes), strict=False)]
        place = min(range(len(added)), key=added.__getitem__)
        if len(sizes) <= MOST_BUCKETS and allocated + added[place] > limit:
            break
        allocated += added[place]
        rows[place : place + 2] = [rows[place] + rows[place + 1]]
        del sizes[place]
    return [next(size for size in sizes if size >= row) + room for row in exact]


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
        self.sizes = torch.tensor([self.capacities(row, room) for row in self.counts.tolist()])
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

    def _fill_layer(self, layer: int, source: Source, plan: Tensor) -> None:
        positions = torch.cat([positions for _, positions in source.rows])
        head, shift = plan[2:].repeat_interleave(plan[0], 1, output_size=positions.numel())
        slots = shift.add_(torch.arange(positions.numel(), device=shift.device))
        keys, values = source.keys[head, positions], source.values[head, positions]
        # Zeros, not garbage: a masked NaN would still poison the softmax's weighted sum.
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
        """Add the previous step's `tokens` to `lengths`, which excludes this step's. If negative, forget them."""
        if tokens:
            self.lengths += tokens

    def forget(self, tokens: int) -> None:
        """Remove the last `tokens` new ones of all rows."""
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
        self._keep_rows(staying.to(self.rows[0].keys.device))

    def _keep_rows(self, staying: Tensor) -> None:
        self.lengths, self.starts = self.lengths[:, staying], self.starts[:, staying]


MOST_SPLITS = 8
UNEVEN = 8


class VarlenTable(RaggedTable):
    """A table for torch's `varlen_attn`: the slots of new tokens are computed once a step, since it appends nothing.

    `write` [layers, rows * new], int64: the slots of the step's new tokens, by row. `used` [layers, rows], int32: the
    tokens of each row, new ones included. `firsts` [layers, rows + 1], int32: the first slot of each row; the kernel
    does not read the last entry. `queries` [rows + 1], int32: where each row's new tokens begin among all rows'.
    """

    write: Tensor
    used: Tensor
    firsts: Tensor
    queries: Tensor

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        device, rows = self.starts.device, self.starts.shape[1]
        self.used = self.lengths + tokens
        self.write = (self.starts + self.lengths).long()
        if tokens > 1:
            self.write = (self.write[..., None] + torch.arange(tokens, device=device)).flatten(1)
        self.firsts = F.pad(self.starts, (0, 1))
        self.queries = torch.arange(0, rows * tokens + 1, tokens, device=device, dtype=torch.int32)

    def splits(self, layer: int) -> int | None:
        """Into how many parts the kernel splits the keys of each row; None lets it choose by the number of rows.

        Its own choice knows the longest row only. Where one row is far longer than the mean, a step waits for it, so
        all rows are split. The two limits are estimates: they were not measured on a GPU.
        """
        sizes = self.sizes[layer]
        uneven = self.longest[layer] * len(sizes) > UNEVEN * int(sizes.sum())
        return MOST_SPLITS if uneven else None


@dataclass(frozen=True)
class MaskedBucket:
    """Consecutive rows of one capacity: views of the storage, [rows, capacity, head_dim], and of the mask.

    `mask` [rows, 1, 1, capacity] is added to the logits. `rows`: indices of the bucket's rows among all buckets' rows.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    mask: Tensor


class MaskedTable(RaggedTable):
    """A table for sdpa: rows of one capacity form a bucket, and a mask shows which slots hold a token.

    Shapes stay the same from step to step. Rows of settings that left are no longer computed if they are at either end
    of a bucket; those in between are still computed, and the result is unused.
    """

    mask: Tensor
    buckets: list[list[MaskedBucket]]

    def __init__(self, sources: list[Source], room: int):
        super().__init__(sources, room, bucketed_capacities)

    def _fill(self, sources: list[Source], room: int) -> None:
        super()._fill(sources, room)
        self._arrange()

    def _begin(self, counts: Tensor, begin: Tensor) -> None:
        ends = torch.tensor(self.slots).cumsum(0)
        self.first = [0, *ends.tolist()]
        device, dtype = self.rows[0].keys.device, self.rows[0].keys.dtype
        self.mask = torch.full((self.first[-1],), float("-inf"), device=device, dtype=dtype)
        self.start = begin
        # The slot of each row's first new token, in its layer's storage and in the mask of all layers.
        self.write = counts + begin
        self.unmask = self.write + (ends - torch.tensor(self.slots)).to(device)[:, None]

    def _fill_mask(self, layer: int, slots: Tensor) -> None:
        self._mask_of(layer).index_fill_(0, slots, 0)

    def _mask_of(self, layer: int) -> Tensor:
        return self.mask[self.first[layer] : self.first[layer + 1]]

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.mask.index_fill_(0, self._following(self.unmask).flatten(), 0)  # all layers at once

    def _following(self, first: Tensor) -> Tensor:
        """Return the slots of this step's new tokens, given those of the first ones [...]: [..., new]."""
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
        self.write, self.unmask = ends.to(device), (ends + first).to(device)
        sizes, counts = self.sizes.flatten(), self.counts.flatten()
        offset = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        slots = (self.begin + first).flatten().repeat_interleave(sizes) + offset
        visible = torch.zeros(slots.shape, dtype=self.mask.dtype)
        visible.masked_fill_(offset >= counts.repeat_interleave(sizes), float("-inf"))
        self.mask.index_copy_(0, slots.to(device), visible.to(device))

    def _keep_rows(self, staying: Tensor) -> None:
        self.start, self.write, self.unmask = (table[:, staying] for table in (self.start, self.write, self.unmask))
        self._arrange()

    def _arrange(self) -> None:
        """Build the buckets of each layer, and the mapping between bucket order and row order in both directions."""
        order: list[list[int]] = []
        place: list[list[int]] = []
        self.buckets = []
        for layer, (begin, sizes) in enumerate(zip(self.begin.tolist(), self.sizes.tolist(), strict=True)):
            order.append([])
            place.append([0] * len(begin))
            self.buckets.append([])
            by_place = sorted(range(len(begin)), key=begin.__getitem__)
            for size, rows in groupby(by_place, sizes.__getitem__):
                self._add_bucket(layer, size, begin, list(rows), order[-1], place[-1])
        lengths = [len(layer) for layer in order]
        index = torch.tensor([*chain(*order), *chain(*place)]).to(self.mask.device)
        self.order = index[: sum(lengths)].split(lengths)
        self.place = index[sum(lengths) :].view(len(place), -1)
        self.in_order = [layer == list(range(len(layer))) for layer in order]

    def _add_bucket(
        self, layer: int, size: int, begin: list[int], rows: list[int], order: list[int], place: list[int]
    ) -> None:
        """Add a bucket of `layer`, from the first to the last of these `rows`. Another row replaces each that left."""
        first, base = begin[rows[0]], len(order)
        count = (begin[rows[-1]] - first) // size + 1
        order += [rows[0]] * count
        for row in rows:
            place[row] = base + (begin[row] - first) // size
            order[place[row]] = row
        slots = slice(first, first + count * size)
        keys, values = self.rows[layer].keys[slots], self.rows[layer].values[slots]
        self.buckets[-1].append(
            MaskedBucket(
                slice(base, base + count),
                keys.view(count, size, -1),
                values.view(count, size, -1),
                self._mask_of(layer)[slots].view(count, 1, 1, size),
            )
        )
