"""H2O, and with it what a scorer gathers from all queries of a prompt, against the full matrix of attention."""

import pytest
import torch

from baselines.h2o import AccumulatedAttention, H2OScorer, H2OScores
from baselines.uniform import UniformAllocator
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.live_bytes import LiveBytesMode
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import BLOCK, EvictionMethod, causal_attention
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV, RaggedAllocator, evicting_layers
from tests.support.naive import attention_of

WINDOW, LENGTH = 4, 150
H2O = EvictionMethod(H2OScorer(WINDOW), UniformAllocator())
RAGGED = EvictionMethod(H2OScorer(WINDOW), RaggedAllocator())


def naive_kept(scores: list[float], budget: int) -> set[int]:
    """Half of the budget the last tokens, half the highest scores of the others, ties to the lower position."""
    recent = max(budget // 2, WINDOW)
    others = range(len(scores) - recent)
    return {*range(len(scores) - recent, len(scores))} | set(
        sorted(others, key=lambda i: (-scores[i], i))[: budget - recent]
    )


def accumulated(weights: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[q_heads, prompt, prompt] -> [kv_heads, prompt]: what each token receives, over all queries."""
    return weights.sum(1).unflatten(0, (kv_heads, -1)).mean(1)


@pytest.mark.parametrize(("family", "chunk"), [("llama", 40), ("qwen3", None), ("qwen2-hybrid", 40)])
def test_it_keeps_what_the_full_matrix_says(family, chunk):
    """For the model's own attention weights, by transformers' eager code, and however the prompt is cut in chunks."""
    model, ids = tiny.model(family), tiny.prompt(LENGTH)
    weights, evicting = attention_of(model, ids), evicting_layers(model)
    with attached(model):
        prompt = prefill(model, ids, WINDOW, chunk, [H2O.scorer])
        for budget in (5, 8, 9, 24, 61, 149):
            for layer, kept in zip(evicting, prompt.kept(Setting(H2O, budget)), strict=True):
                scores = accumulated(weights[layer], len(kept))
                for head, positions in enumerate(kept):
                    assert set(positions.tolist()) == naive_kept(scores[head].tolist(), budget)
    for layer, prefilled in zip(evicting, prompt.layers, strict=True):
        total = prefilled.observed[H2O.scorer].total
        torch.testing.assert_close(total, accumulated(weights[layer], len(total)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("method", "chunk"), [(H2O, None), (RAGGED, 40)])
def test_in_layer_and_shared_are_the_same(method, chunk):
    """Beside other methods, which keep and generate what they do without it."""
    model, ids = tiny.model("llama"), tiny.prompt(LENGTH)
    settings, new = [Setting(method, 40), Setting(SNAPKV, 40), FULL], Stopping(8)
    with attached(model):
        together = generate(model, ids, settings, new, chunk=chunk)
        assert together == [generate_in_layer(model, ids, setting, new, chunk) for setting in settings]
        assert together[1:] == generate(model, ids, settings[1:], new, chunk=chunk)
        assert together[0].kept != together[1].kept or together[0].tokens != together[2].tokens


def test_a_smaller_capacity_keeps_a_part_of_what_a_larger_one_keeps():
    """So that layers may shrink while the prompt is processed."""
    scores = H2OScores(torch.rand(2, 90, generator=torch.Generator().manual_seed(0)), window=WINDOW)
    before = [set[int]()] * 2
    for capacity in range(91):
        kept = [set(row[:capacity].tolist()) for row in scores.order(capacity)]
        for smaller, larger in zip(before, kept, strict=True):
            assert smaller < larger or capacity == 0
        before = kept
        mixed = scores.order((capacity, 90 - capacity))
        assert set(mixed[0][:capacity].tolist()) == kept[0]


def test_memory_grows_with_the_prompt_and_not_with_its_square():
    """What is alive beside queries and keys: a block of queries by all keys, never all by all."""
    queries, keys = torch.rand(6, 2000, 4), torch.rand(2, 2000, 4)
    with LiveBytesMode([queries, keys]) as mode:
        AccumulatedAttention()(queries, keys, 0.5)
    block = 6 * BLOCK * 2000 * 4
    assert mode.live.peak < 3.5 * block < 6 * 2000 * 2000 * 4 / 8


def test_blocks_of_attention_are_the_matrix():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 130, 4, generator=generator), torch.randn(2, 200, 4, generator=generator)
    logits = queries @ keys.repeat_interleave(3, 0).transpose(1, 2) * 0.5
    matrix = logits.masked_fill(torch.ones(130, 200, dtype=torch.bool).triu_(71), float("-inf")).softmax(-1)
    blocks = [torch.nn.functional.pad(b, (0, 200 - b.shape[2])) for b in causal_attention(queries, keys, 0.5)]
    assert max(block.shape[1] for block in blocks) == BLOCK
    torch.testing.assert_close(torch.cat(blocks, 1), matrix)


def test_a_prompt_that_fits_is_not_observed():
    assert Setting(H2O, 200).scorers(LENGTH) == FULL.scorers(LENGTH) == []
    assert Setting(H2O, 40).scorers(None) == Setting(H2O, 40).scorers(LENGTH) == [H2O.scorer]
