"""What scorers are given: the attention of the observation window, pooled and grouped."""

import torch

from compresskv.eviction import LayerPrefill, Observation, group_mean


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


def test_pooling_counts_the_padding():
    scores = torch.tensor([[14.0, 3, 2, 2, 2, 2]])
    assert (3 * Observation(kernel=3).pool(scores)).tolist() == [[17, 19, 7, 6, 6, 4]]
    assert Observation(kernel=3, pooling="max").pool(scores).tolist() == [[14, 14, 3, 2, 2, 2]]
