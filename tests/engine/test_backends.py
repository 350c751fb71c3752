"""The flash-attention path, on pure-torch stand-ins with the signatures and semantics of flash-attn 2.7."""

from types import SimpleNamespace

import pytest
import torch

from compresskv.engine.attention import attached, register
from compresskv.engine.backends import FlashAttention2
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
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


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, softmax_scale=None, causal=False):
    """q [rows, 1, heads, d], caches [rows, capacity, kv_heads, d] of which `cache_seqlens` (int32) are valid.

    k and v [rows, 1, kv_heads, d] are written behind these, and attended to.
    """
    assert cache_seqlens.dtype == torch.int32
    assert k_cache.stride(-1) == 1
    rows = torch.arange(q.shape[0])
    k_cache[rows, cache_seqlens], v_cache[rows, cache_seqlens] = k[:, 0], v[:, 0]
    groups = q.shape[2] // k_cache.shape[2]
    keys, values = k_cache.repeat_interleave(groups, 2), v_cache.repeat_interleave(groups, 2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, keys) * softmax_scale
    valid = torch.arange(keys.shape[1]) < cache_seqlens[:, None] + 1
    logits = logits.masked_fill(~valid[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)


KERNELS = SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen2-hybrid", "qwen3"])
def test_flash_attention_generates_what_sdpa_does(family):
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        expected = generate(model, ids, settings, Stopping(10))
    name = register("compresskv_fa2_standin", FlashAttention2(KERNELS))
    with attached(model, name):
        assert generate(model, ids, settings, Stopping(10)) == expected
        assert generate(model, ids, settings, Stopping(10), chunk=40) == expected
        assert [generate_in_layer(model, ids, s, Stopping(10)) for s in settings] == expected


def test_rows_leave_and_buffers_grow_on_both_backends():
    """Rows of unequal length in several buckets, of which some stop, in buffers with room for three new tokens."""
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = settings_for(4)
    free = _generate(model, "sdpa", ids, settings, Stopping(16), room=16)
    stop = Stopping(16, frozenset([free[0][5], free[2][7], free[4][3]]))
    expected = [_until(stop.ids, tokens) for tokens in free]
    assert len({len(tokens) for tokens in expected}) > 2
    register("compresskv_fa2_standin", FlashAttention2(KERNELS))
    for backend in ("sdpa", "compresskv_fa2_standin"):
        for room in (3, 16):
            assert _generate(model, backend, ids, settings, stop, room) == expected


def _generate(model, backend, ids, settings, stopping, room):
    with attached(model, backend):
        prompt = prefill(model, ids, 4)
        cache = decode_cache(prompt, [prompt.kept(setting) for setting in settings], room)
        assert len(cache.evicting[0].rows.buckets) > 2
        assert any(not bucket.equal for layer in cache.evicting for bucket in layer.rows.buckets)
        return decode(model, cache, prompt.logits, ids.numel(), len(settings), stopping)


def _until(stops, tokens):
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens
