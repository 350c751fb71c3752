"""The buckets of sdpa on GPUs: whatever rows leave, each remaining row is found at its place, and only once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskv.engine.ragged import MaskedTable
from compresskv.engine.rows import Source

LAYERS, HEADS = 2, 2


def leaving(settings, random):
    """Kept tokens [layer][setting * head], and the settings that are left after each departure."""
    counts = [[random.randint(1, 300) for _ in range(settings * HEADS)] for _ in range(LAYERS)]
    left, steps = list(range(settings)), []
    while len(left) > 1:
        left = sorted(random.sample(left, random.randint(1, len(left) - 1)))
        steps.append(left)
    return counts, steps


@given(st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_each_row_is_at_its_place_after_others_left(number, random):
    counts, steps = leaving(number, random)
    storage = torch.arange(HEADS * 300.0).view(HEADS, 300, 1)
    sources = [
        Source(storage, storage, [(row % HEADS, torch.arange(count)) for row, count in enumerate(layer)], HEADS)
        for layer in counts
    ]
    table = MaskedTable(sources, 8)
    before = list(range(len(counts[0]) // HEADS))
    for left in [before, *steps]:
        if left != before:
            table.keep_settings([before.index(setting) for setting in left])
        before = left
        rows = [setting * HEADS + head for setting in left for head in range(HEADS)]
        for layer in range(LAYERS):
            order, place = table.order[layer].tolist(), table.place[layer].tolist()
            buckets = table.buckets[layer]
            assert [bucket.rows.start for bucket in buckets] + [len(order)] == [0, *(b.rows.stop for b in buckets)]
            assert table.in_order[layer] == (order == list(range(len(rows))))
            assert all(0 <= row < len(rows) for row in order)
            for row, of_source in enumerate(rows):
                assert order[place[row]] == row
                bucket = next(bucket for bucket in buckets if bucket.rows.start <= place[row] < bucket.rows.stop)
                slot, count = place[row] - bucket.rows.start, counts[layer][of_source]
                assert torch.equal(bucket.keys[slot, :count], storage[of_source % HEADS, :count])
                assert bucket.mask[slot].flatten().eq(0).sum() == count
