"""The backends of GPUs: sdpa in their layout, and flash-attention with flash-attn 2.7's functions in pure torch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.ragged import bucketed_capacities, exact_capacities
from compresskv.engine.rows import by_size, rounded
from tests.support import tiny
from tests.support.methods_in_use import evicting_layers, settings_for

gpu_layouts = pytest.mark.parametrize("layout", ["masked sdpa", "flash-attn"], indirect=True)


@gpu_layouts
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen2-hybrid", "qwen3"])
def test_backends_of_gpus_generate_what_the_cpu_does(family, layout):
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        expected = generate(model, ids, settings, Stopping(10))
    with attached(model, layout):
        assert generate(model, ids, settings, Stopping(10)) == expected
        assert generate(model, ids, settings, Stopping(10), chunk=40) == expected
        assert [generate_in_layer(model, ids, s, Stopping(10)) for s in settings] == expected


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
