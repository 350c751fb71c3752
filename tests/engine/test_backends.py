"""The backends of GPUs: sdpa in their layout, and stand-ins of torch's and flash-attn's kernels in pure torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskv.engine import backends
from compresskv.engine.attention import attached, forget, register
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.ragged import MaskedTable, bucketed_capacities, exact_capacities
from compresskv.engine.rows import Source, by_size, rounded
from compresskv.probe import backend_fault
from tests.support import tiny
from tests.support.flash_attention import varlen_attn
from tests.support.logical_devices import logical_devices
from tests.support.methods_in_use import evicting_layers, settings_for

gpu_layouts = pytest.mark.parametrize("layout", ["masked sdpa", "varlen", "flash-attn"], indirect=True)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("qwen2-hybrid", "masked sdpa"),
        ("qwen3", "varlen"),
        ("mistral-sliding", "varlen"),
        ("qwen2-hybrid", "flash-attn"),
        ("llama", "flash-attn"),
    ],
    indirect=["layout"],
)
def test_backends_of_gpus_generate_what_the_cpu_does(family, layout):
    model, ids, new = tiny.model(family), tiny.prompt(90), Stopping(6)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        expected = generate(model, ids, settings, new)
    with attached(model, layout):
        assert generate(model, ids, settings, new) == expected
        assert generate(model, ids, settings, new, chunk=40) == expected
        assert [generate_in_layer(model, ids, setting, new) for setting in settings] == expected


@gpu_layouts
def test_backends_pass_the_check_at_loading(layout):
    assert [backend_fault(tiny.model(family), layout) for family in ("llama", "qwen2-hybrid")] == [None, None]


@pytest.mark.parametrize("fault", ["length", "start", "scale", "error"])
def test_a_kernel_that_reads_rows_otherwise_is_refused(fault):
    """As one of another torch might."""

    def kernel(query, key, value, firsts_q, firsts_k, *args, **kwargs):
        if fault == "length":
            kwargs["seqused_k"] = (kwargs["seqused_k"] - 1).clamp(min=1)
        if fault == "start":
            firsts_k = torch.zeros_like(firsts_k)
        if fault == "scale":
            kwargs["scale"] = 1.0
        if fault == "error":
            raise RuntimeError("no kernel image is available")
        return varlen_attn(query, key, value, firsts_q, firsts_k, *args, **kwargs)

    name = register("compresskv_broken", backends.Varlen(kernel))
    try:
        assert backend_fault(tiny.model("llama"), name)
    finally:
        forget(name)


@gpu_layouts
@pytest.mark.parametrize("room", [3, 16])
def test_rows_leave_and_buffers_grow(layout, room):
    """Rows of unequal length, of which some stop, in buffers that have room for three new tokens, or for all."""
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = settings_for(4)
    free = _generate(model, "sdpa", ids, settings, Stopping(16), 16)
    stop = Stopping(16, frozenset([free[0][5], free[2][7], free[4][3]]))
    expected = [_until(stop.ids, tokens) for tokens in free]
    assert len({len(tokens) for tokens in expected}) > 2
    assert _generate(model, "sdpa", ids, settings, stop, room) == expected
    assert _generate(model, layout, ids, settings, stop, room) == expected


def _generate(model, backend, ids, settings, stopping, room):
    with attached(model, backend):
        prompt = prefill(model, ids, 4)
        kept = [prompt.kept(setting) for setting in settings]
        assert len({head.numel() for setting in kept for head in setting[0]}) > 2
        return decode(model, decode_cache(prompt, kept, room), prompt.logits, ids.numel(), len(settings), stopping)


@pytest.mark.parametrize(
    ("capability", "new", "total", "window", "takes"),
    [
        ((9, 0), 40, 40, None, True),
        ((9, 0), 32, 32, None, False),  # not longer than the limit
        ((9, 0), 20, 40, None, False),  # a chunk
        ((9, 0), 40, 40, 16, False),  # a sliding window needs a mask
        ((8, 0), 40, 40, None, False),
    ],
)
def test_cudnn_takes_long_prompts_on_hopper(monkeypatch, capability, new, total, window, takes):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(backends, "CUDNN_FROM", 32)
    allowed = []

    def attention(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())

    monkeypatch.setattr(backends.F, "scaled_dot_product_attention", attention)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as within `attached`
    try:
        with logical_devices():
            query, key = (torch.zeros(1, 4, n, 8, dtype=torch.bfloat16).to("cuda:0") for n in (new, total))
            backends.SDPA().prefill(query, key, key, 1.0, window)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert allowed == [takes]


@given(st.lists(st.integers(1, 1200), min_size=1, max_size=60), st.integers(1, 70))
def test_capacities_of_few_sizes(counts, room):
    """Seven sizes at most; no more memory than 1.25 times of what is needed where that many allow it."""
    rows = by_size(counts)
    capacities = [bucketed_capacities(rows, room)[rounded(count)] for count in counts]
    exact = [exact_capacities(rows, -(-room // 8) * 8)[rounded(count)] for count in counts]
    assert all(capacity >= needed for capacity, needed in zip(capacities, exact, strict=True))
    assert all(capacity % 8 == 0 for capacity in capacities)
    sizes = sorted(set(capacities))
    assert len(sizes) <= 7
    if len(sizes) < 7:
        assert sum(capacities) <= 1.25 * sum(exact)


def _until(stops, tokens):
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


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
