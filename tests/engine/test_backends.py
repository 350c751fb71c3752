"""The backends of GPUs: sdpa in their layout, and flash-attention on stand-ins of flash-attn 2.7's functions."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import FlashAttention2, MaskedSDPA
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.ragged import bucketed_capacities, exact_capacities
from tests import tiny
from tests.methods_in_use import evicting_layers, settings_for


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """q [batch, new, heads, d], k and v [batch, total, kv_heads, d]; causal is aligned to the bottom right."""
    new, total, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    distance = torch.arange(total) - torch.arange(total - new, total)[:, None]
    visible = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window_size[0] >= 0:
        visible &= distance >= -window_size[0]
    logits = logits.masked_fill(~visible, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, cache_batch_idx=None, softmax_scale=None, causal=False
):
    """q [rows, 1, heads, d], caches [batch, capacity, kv_heads, d], of which row r is `cache_batch_idx[r]`.

    `cache_seqlens` (int32) tokens of a row are valid; k and v [rows, 1, kv_heads, d] are written behind these, and
    attended to. Nothing is read or written beyond a row's tokens, whatever the batches' strides.
    """
    rows, capacity = q.shape[0], k_cache.shape[1]
    for index in (cache_seqlens, cache_batch_idx):
        assert (index.dtype, index.shape, index.is_contiguous()) == (torch.int32, (rows,), True)
    assert k_cache.stride(-1) == v_cache.stride(-1) == q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    out = torch.empty_like(q)
    for row, (batch, seen) in enumerate(zip(cache_batch_idx.tolist(), cache_seqlens.tolist(), strict=True)):
        assert 0 <= seen < capacity
        assert 0 <= batch < len(k_cache)
        k_cache[batch, seen], v_cache[batch, seen] = k[row, 0], v[row, 0]
        keys, values = k_cache[batch, : seen + 1], v_cache[batch, : seen + 1]
        groups = q.shape[2] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        logits = torch.einsum("hd,khd->hk", q[row, 0], keys) * softmax_scale
        out[row, 0] = torch.einsum("hk,khd->hd", logits.softmax(-1), values)
    return out


KERNELS = SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)


@pytest.fixture(params=["masked sdpa", "flash-attn"])
def backend(request):
    """The name of a backend of GPUs, which runs on the CPU here."""
    made = MaskedSDPA() if request.param == "masked sdpa" else FlashAttention2(KERNELS)
    name = register("compresskv_for_gpus", made)
    yield name
    forget(name)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen2-hybrid", "qwen3"])
def test_backends_of_gpus_generate_what_the_cpu_does(family, backend):
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        expected = generate(model, ids, settings, Stopping(10))
    with attached(model, backend):
        assert generate(model, ids, settings, Stopping(10)) == expected
        assert generate(model, ids, settings, Stopping(10), chunk=40) == expected
        assert [generate_in_layer(model, ids, s, Stopping(10)) for s in settings] == expected


@pytest.mark.parametrize("room", [3, 16])
def test_rows_leave_and_buffers_grow(backend, room):
    """Rows of unequal length, of which some stop, in buffers that have room for three new tokens, or for all."""
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = settings_for(4)
    free = _generate(model, "sdpa", ids, settings, Stopping(16), 16)
    stop = Stopping(16, frozenset([free[0][5], free[2][7], free[4][3]]))
    expected = [_until(stop.ids, tokens) for tokens in free]
    assert len({len(tokens) for tokens in expected}) > 2
    assert _generate(model, "sdpa", ids, settings, stop, room) == expected
    assert _generate(model, backend, ids, settings, stop, room) == expected


def _generate(model, backend, ids, settings, stopping, room):
    with attached(model, backend):
        prompt = prefill(model, ids, 4)
        kept = [prompt.kept(setting) for setting in settings]
        assert len({head.numel() for setting in kept for head in setting[0]}) > 2
        return decode(model, decode_cache(prompt, kept, room), prompt.logits, ids.numel(), len(settings), stopping)


@given(st.lists(st.integers(1, 1200), min_size=1, max_size=60), st.integers(1, 70))
def test_capacities_of_few_sizes(counts, room):
    """Seven sizes at most; no more memory than 1.25 times of what is needed where that many allow it."""
    capacities = bucketed_capacities(counts, room)
    exact = exact_capacities(counts, -(-room // 8) * 8)
    assert all(capacity >= needed for capacity, needed in zip(capacities, exact, strict=True))
    assert all(capacity % 8 == 0 for capacity in capacities)
    sizes = sorted(set(capacities))
    assert len(sizes) <= 7
    if len(sizes) < 7:
        assert sum(capacities) <= 1.25 * sum(exact)


def _until(stops, tokens):
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens
