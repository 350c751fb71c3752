"""flash-attn 2.7's two functions and torch's `varlen_attn` in pure torch, with their signatures and semantics."""

from types import SimpleNamespace

import torch

from tests.support.logical_devices import on_the_cpu


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """Compute attention of q [batch, new, heads, d] to k and v [batch, total, kv_heads, d].

    `causal` is aligned to the bottom right.
    """
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
    """Compute attention of q [rows, new, heads, d] to caches [batch, capacity, kv_heads, d].

    Row r uses the cache row `cache_batch_idx[r]`, whose first `cache_seqlens[r]` (int32) tokens are valid. k and v
    [rows, new, kv_heads, d] are written after these and attended to causally. For any strides, nothing is read or
    written beyond a row's tokens.
    """
    rows, new, capacity = q.shape[0], q.shape[1], k_cache.shape[1]
    assert causal or new == 1
    for index in (cache_seqlens, cache_batch_idx):
        assert (index.dtype, index.shape, index.is_contiguous()) == (torch.int32, (rows,), True)
    assert k_cache.stride(-1) == v_cache.stride(-1) == q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    out = torch.empty_like(q)
    for row, (batch, seen) in enumerate(zip(cache_batch_idx.tolist(), cache_seqlens.tolist(), strict=True)):
        assert 0 <= seen <= capacity - new
        assert 0 <= batch < len(k_cache)
        k_cache[batch, seen : seen + new], v_cache[batch, seen : seen + new] = k[row], v[row]
        for i in range(new):
            keys, values = k_cache[batch, : seen + i + 1], v_cache[batch, : seen + i + 1]
            groups = q.shape[2] // keys.shape[1]
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
            logits = torch.einsum("hd,khd->hk", q[row, i], keys) * softmax_scale
            out[row, i] = torch.einsum("hk,khd->hd", logits.softmax(-1), values)
    return out


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """query [tokens, heads, d], key and value [slots, kv_heads, d].

    Row r has the queries `cu_seq_q[r]` to `cu_seq_q[r + 1]` and the `seqused_k[r]` keys from `cu_seq_k[r]` on; a window
    of (-1, 0) is causal, aligned to the bottom right. With `seqused_k` the kernel reads no end of a row in `cu_seq_k`.
    """
    rows = len(seqused_k)
    assert return_aux is None
    assert block_table is None
    assert window_size in ((-1, -1), (-1, 0))
    for index, length in ((cu_seq_q, rows + 1), (cu_seq_k, rows + 1), (seqused_k, rows)):
        assert (index.dtype, index.shape, index.is_contiguous()) == (torch.int32, (length,), True)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert num_splits is None or num_splits >= 1
    out = torch.empty_like(query)
    ends = cu_seq_q.tolist()
    for row, (first, used) in enumerate(zip(cu_seq_k.tolist(), seqused_k.tolist(), strict=False)):
        new = ends[row + 1] - ends[row]
        assert new <= max_q
        assert 0 < used <= max_k
        assert first + used <= len(key)
        groups = query.shape[1] // key.shape[1]
        keys = key[first : first + used].repeat_interleave(groups, 1)
        values = value[first : first + used].repeat_interleave(groups, 1)
        logits = torch.einsum("qhd,khd->hqk", query[ends[row] : ends[row + 1]], keys) * scale
        if window_size == (-1, 0):
            logits = logits + torch.full((new, used), float("-inf")).triu(used - new + 1)
        out[ends[row] : ends[row + 1]] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values)
    return out


KERNELS = SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)
"""Kernels for tensors on the CPU."""

ON_LOGICAL_DEVICES = SimpleNamespace(
    flash_attn_func=on_the_cpu(flash_attn_func), flash_attn_with_kvcache=on_the_cpu(flash_attn_with_kvcache)
)
"""Kernels for logical tensors; each call counts as one launch."""
