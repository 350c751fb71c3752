"""Memory: what fits is decoded together, the rest in more batches, and what it will take is known before it starts."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode_cache
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import decode_batches, generate
from compresskv.engine.memory import _cgroup_free, batches
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import Setting
from evals.running.forecast import forecast
from tests.support import tiny
from tests.support.command import run
from tests.support.methods_in_use import FULL, RAGGED, SNAPKV, STREAMING, compresskv

NEW = Stopping(10)
SETTINGS = [
    FULL,
    *(Setting(method, budget) for budget in (20, 60) for method in (SNAPKV, STREAMING, RAGGED, compresskv(4))),
]


@given(sizes=st.lists(st.integers(1, 50)), limit=st.integers(-5, 120))
def test_batches_respect_the_limit(sizes, limit):
    found = batches(sizes, limit)
    assert sorted(place for batch in found for place in batch) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) == 1 or sum(sizes[place] for place in batch) <= limit
    for smaller, larger in pairwise(found):
        assert max(sizes[place] for place in smaller) <= min(sizes[place] for place in larger)


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "mistral-sliding"])
def test_settings_that_exceed_the_memory_decode_in_several_batches(family):
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = SETTINGS if family != "mistral-sliding" else SETTINGS[1:4]  # it has no layer that evicts
    with attached(model):
        roomy = generate(model, ids, settings, NEW)
        prompt = prefill(model, ids, 4)
        prompt.score(settings)
        sizes = [prompt.row_bytes(prompt.kept(setting), NEW.max_new_tokens) for setting in settings]
        tight = generate(model, ids, settings, NEW, memory=prompt.nbytes + 2 * max(sizes))
        assert generate(model, ids, settings, NEW, memory=1) == roomy  # one that does not fit is still tried
    assert tight == roomy
    assert len({g.together for g in tight}) > len({g.together for g in roomy})
    for place, generation in enumerate(tight):
        assert place in generation.together
        assert {tight[other].together for other in generation.together} == {generation.together}
        assert sum(sizes[other] for other in generation.together) <= 2 * max(sizes)


def test_the_full_cache_decodes_apart():
    settings = [*SETTINGS, SETTINGS[0]]
    assert decode_batches(settings, [1] * len(settings), 10**9) == [list(range(1, len(SETTINGS))), [0], [len(SETTINGS)]]


@pytest.mark.parametrize(("family", "length"), [("llama", 300), ("qwen2-hybrid", 50), ("mistral-sliding", 300)])
def test_the_footprint_is_that_of_the_buffers(family, length):
    """To the byte for the prompt; for caches, no less than is allocated, and no more than the rounding above it."""
    model, ids, room = tiny.model(family), tiny.prompt(length), 10
    shape = Footprint(model, length)
    with attached(model):
        prompt = prefill(model, ids, 4)
    layers = sum(layer.keys.nbytes + layer.values.nbytes for layer in prompt.layers)
    assert shape.prompt == layers + prompt.cache.sliding_bytes
    for setting in SETTINGS:
        kept = prompt.kept(setting)
        with attached(model):
            cache = decode_cache(prompt, [kept], room)
            assert prompt.row_bytes(kept, room) == cache.nbytes + cache.sliding_bytes
        taken = cache.nbytes + cache.sliding_bytes
        logits = 8 * model.config.vocab_size
        slack = 32 * len(prompt.layers) * 2 * 2 * 16 * 4
        assert taken <= shape.row(setting.budget, room) - logits <= taken + slack


def test_a_forecast_says_what_is_too_much():
    model = tiny.model("llama")
    found = forecast(model, SETTINGS, length=500, room=10)
    assert found.peak > found.used > 50e6
    assert f"peak {found.peak / 1e9:.2f} GB" in str(found)
    assert "batches" not in str(found)
    assert "prefill_chunk" not in str(found)
    assert forecast(model, SETTINGS[:1], length=500, room=10).caches < found.caches
    some = found.prompt + found.scores + int(0.6 * found.caches)
    assert "evict decode in 2 batches" in str(forecast(model, SETTINGS, 500, 10, chunk=50, memory=some))
    assert "prefill_chunk" in str(forecast(model, SETTINGS, 500, 10, memory=1))
    assert "prefill_chunk" in str(forecast(model, SETTINGS, 10**10, 10))
    assert forecast(model, SETTINGS, 500, 10, chunk=100).activations < found.activations


def test_a_cluster_s_limit_counts(tmp_path):
    process = tmp_path / "cgroup"
    process.write_text("0::/slurm/job 1/step\n")
    for place, limit, used in (("slurm", "1000", 300), ("slurm/job 1", "max", 250), ("slurm/job 1/step", "700", 200)):
        folder = tmp_path / "fs" / place
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 10\ninactive_file 50\n")
    assert min(_cgroup_free(tmp_path / "fs", process)) == 700 - 200 + 50
    assert min(_cgroup_free(tmp_path / "elsewhere", process)) > 1 << 60
    assert min(_cgroup_free(tmp_path / "fs", tmp_path / "none")) > 1 << 60


@pytest.mark.slow
def test_the_command_line_bounds_the_memory(checkpoint, tmp_path):
    """A line names the settings that it was decoded with, and the forecast is printed before the first prompt."""
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    sweep = ["-m", "method=full,snapkv", "budget=32,64", "eval.lengths=[300]", "eval.depths=2", "eval.max_new_tokens=4"]
    predictions = {}
    for memory in ("null", "0.00016"):
        results = tmp_path / memory
        done = run(*sweep, *model, f"paths.results={results}", f"memory={memory}")
        assert done.returncode == 0, done.stderr
        assert "expected peak" in done.stderr
        files = [path.read_text().splitlines() for path in sorted(results.rglob("samples.jsonl"))]
        lines = [json.loads(line) for file in files for line in file]
        predictions[memory] = [line["prediction"] for line in lines]
        assert len({tuple(line["batch"]) for line in lines}) == (2 if memory == "null" else 3)
    assert predictions["null"] == predictions["0.00016"]
