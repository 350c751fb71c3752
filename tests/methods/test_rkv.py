"""R-KV against its formula, token by token in plain Python."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rkv import RKVScorer, redundancies
from baselines.uniform import UniformAllocator
from compresskv.eviction import BLOCK, EvictionMethod, LayerPrefill, PromptShape

from .construction import context, kept, method


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def naive_redundancy(keys: list[list[float]], threshold: float) -> list[float]:
    """[token][coordinate] -> [token]."""
    total = [0.0] * len(keys)
    for i, one in enumerate(keys):
        row = [dot(one, other) / math.hypot(*one) / math.hypot(*other) for other in keys]
        row[i] = 0.0
        row[max((j for j, value in enumerate(row) if value > threshold), default=0)] = 0.0
        total = [before + value for before, value in zip(total, row, strict=True)]
    return softmax([value / len(keys) for value in total])


def naive_scores(queries, keys, scaling, window, kernel, threshold, mix) -> list[float]:
    """Of one KV head: queries [query head][window][coordinate], keys [token][coordinate] -> [past]."""
    past = len(keys) - window
    mean = [0.0] * past
    for row in range(window):
        logits = [max(dot(head[row], key) for head in queries) * scaling for key in keys[:past]]
        mean = [before + value / window for before, value in zip(mean, softmax(logits), strict=True)]
    reach = kernel // 2
    pooled = [max(mean[max(j - reach, 0) : j + reach + 1]) for j in range(past)]
    redundancy = naive_redundancy(keys, threshold)[:past]
    return [mix * a - (1 - mix) * b for a, b in zip(pooled, redundancy, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(5, 30),
    st.integers(1, 4),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.floats(0, 1),
)
def test_scores_are_the_formula(seed, length, window, kernel, threshold, mix):
    draw = random.Random(seed)

    def vectors(*shape):
        return [draw.gauss(0, 1) for _ in range(3)] if not shape else [vectors(*shape[1:]) for _ in range(shape[0])]

    queries, keys = vectors(4, window), vectors(2, length)
    layer = LayerPrefill(0, torch.tensor(queries), torch.tensor(keys), torch.tensor(keys), scaling=0.6)
    found = RKVScorer(window, kernel, threshold, mix)(layer).scores
    for head in range(2):
        group = queries[2 * head : 2 * head + 2]
        expected = naive_scores(group, keys[head], 0.6, window, kernel, threshold, mix)
        torch.testing.assert_close(found[head], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_redundancy_by_hand():
    """Keys a, a, b, a at right angles: each a is cleared of its last like, b clears the first token."""
    keys = torch.tensor([[[1.0, 0], [2, 0], [0, 1], [3, 0]]])
    # Rows of cosines, after clearing: [0 1 0 0], [1 0 0 0], [0 0 0 0], [1 0 0 0].
    expected = torch.tensor([2 / 4, 1 / 4, 0, 0]).softmax(-1)
    torch.testing.assert_close(redundancies(keys, 0.5)[0], expected)


def test_of_equal_tokens_the_last_is_kept():
    keys = torch.eye(6)[[0, 1, 0, 2, 0, 3, 4, 5]].expand(2, -1, -1)
    layer = LayerPrefill(0, torch.zeros(4, 2, 6), keys, keys, scaling=1.0)
    rkv = EvictionMethod(RKVScorer(window=2), UniformAllocator())
    assert kept(rkv, [layer], 6) == [[[1, 3, 4, 5, 6, 7]] * 2]


def test_blocks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, BLOCK + 9, 4, generator=generator)
    expected = naive_redundancy(keys[0].tolist(), 0.5)
    torch.testing.assert_close(redundancies(keys, 0.5)[0], torch.tensor(expected), atol=1e-6, rtol=1e-4)


def test_the_defaults_are_those_of_the_authors_code():
    made = method("rkv", context(PromptShape(2, 2, 100, 8)))
    assert made.scorer == RKVScorer() == RKVScorer(window=8, kernel=7, threshold=0.5, mix=0.07)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_keys_are_similar_to_none(dtype):
    assert redundancies(torch.zeros(1, 5, 4, dtype=dtype), 0.5)[0].tolist() == pytest.approx([0.2] * 5)
