"""Properties of the selection, for any scores and capacities; and the attention and grouping that scorers use."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskv.eviction import LayerPrefill, LayerScores, group_mean
from compresskv.selection import select, tighten

# Few distinct values make ties the rule rather than the exception.
score_rows = st.integers(1, 3).flatmap(
    lambda heads: st.integers(0, 40).flatmap(
        lambda past: st.lists(st.lists(st.integers(0, 4), min_size=past, max_size=past), min_size=heads, max_size=heads)
    )
)


@given(score_rows, st.data())
@settings(deadline=None, max_examples=200)
def test_select(rows, data):
    heads, past = len(rows), len(rows[0])
    window = data.draw(st.integers(1, 9))
    capacity = data.draw(st.one_of(st.integers(0, past), st.tuples(*[st.integers(0, past) for _ in rows])))
    scores = torch.tensor(rows, dtype=torch.float32).view(heads, past)
    kept = select(LayerScores(scores), capacity, past + window)
    counts = capacity if isinstance(capacity, tuple) else (capacity,) * heads
    for row, positions, count in zip(rows, kept, counts, strict=True):
        chosen = positions.tolist()
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count + window
        assert chosen[count:] == list(range(past, past + window))
        expected = sorted(range(past), key=lambda i: (-row[i], i))[:count]
        assert chosen[:count] == sorted(expected)


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_layer_never_gets_back_what_it_gave_up(rounds):
    answers = [rounds[0][:1] * (i + 1) if i == 0 else (row * 6)[: i + 1] for i, row in enumerate(rounds)]
    kept = []
    for answer in answers:
        before = kept
        kept = tighten(kept, answer, past=30)
        assert len(kept) == len(answer)
        assert all(0 <= new <= old for new, old in zip(kept, before, strict=False))
        assert all(new <= min(30, a) for new, a in zip(kept, answer, strict=True))


def test_tighten_mixes_layer_and_head_capacities():
    assert tighten([10, (3, 8)], [(4, 12), 5, (1, 2)], past=9) == [(4, 10), (3, 5), (1, 2)]


def test_query_heads_are_grouped_under_their_own_kv_head():
    per_query_head = torch.tensor([[1.0], [2.0], [30.0], [40.0]])
    assert group_mean(per_query_head, 2).tolist() == [[1.5], [35.0]]


def test_window_attention_is_the_models_softmax_under_grouped_queries():
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 5, 8), torch.randn(2, 12, 8)
    layer = LayerPrefill(0, queries, keys, keys, 0.3)
    for window in (5, 3, 1):
        logits = torch.stack([queries[h, -window:] @ keys[h // 3].T * 0.3 for h in range(6)])
        for row in range(window):
            logits[:, row, 12 - window + row + 1 :] = float("-inf")
        torch.testing.assert_close(layer.window_attention(window), logits.softmax(-1))
