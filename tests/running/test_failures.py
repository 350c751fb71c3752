"""Prompts that fail: a line says why, no mean counts them, and the next run tries them again."""

import json

import pytest
import torch

from compresskv.engine.prefill import PrefillError
from compresskv.errors import NonFiniteError, UserError
from evals.results.compare import comparisons
from evals.results.frames import sample_frame
from evals.results.record import records
from evals.running import batches
from evals.running.sweep import run
from tests.support.jobs import job
from tests.support.refusals import refused

GRID = ["eval.lengths=[200]", "eval.depths=[0,50,100]", "eval.max_new_tokens=2"]
FAILING = "L200-D50-N0"

MEMORY = torch.OutOfMemoryError("CUDA out of memory")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
PREFILL = PrefillError("prompt", "use shorter ones", why="out of memory")
FAILURES = {
    "memory": MEMORY,
    "cpu": CPU,
    "python": MemoryError(),
    "nan": NonFiniteError("model.dtype", "use float32", why="logits are not finite"),
}


@pytest.fixture
def sweep(on_tiny_model, tiny, tmp_path, monkeypatch):
    """Run full and snapkv; `failing(settings, ids)` gives the error of a prompt's batch, if there is one."""
    generate = batches.generate
    calls = []

    def go(failing, *overrides):
        def injected(model, ids, settings, stopping, **options):
            calls.append(len(settings))
            if error := failing(settings, len(calls)):
                raise error
            return generate(model, ids, settings, stopping, **options)

        monkeypatch.setattr(batches, "generate", injected)
        calls.clear()
        given = [*GRID, *tiny, f"paths.results={tmp_path}", *overrides, "budget=64"]
        run([job(*given, f"method={name}") for name in ("full", "snapkv")])
        return len(calls)

    return go


def second(error):
    return lambda settings, call: error if call == 2 else None


def never(settings, call):
    return None


def snapkv(results):
    (record,) = [record for record in records(results) if record.method == "snapkv"]
    return record


@pytest.mark.parametrize(("error", "calls"), [(PREFILL, [2]), (FAILURES["nan"], [2, 3, 4])], ids=["prefill", "nan"])
def test_one_prompt_that_fails_does_not_end_its_settings(sweep, tmp_path, capsys, error, calls):
    with refused(None) as caught:
        sweep(lambda settings, call: error if call in calls else None)
    assert "2 of 2" in caught.value.why
    assert f"{FAILING} failed under 2 settings: {error}" in capsys.readouterr().err
    for record in records(tmp_path):
        assert set(record.samples) == {"L200-D0-N0", "L200-D100-N0"}
        assert record.failures[FAILING]["error"] == str(error)
        assert record.failures[FAILING]["length"] == 200
        assert (record.summary["n"], record.summary["failed"]) == (2, 1)
        assert FAILING not in record.summary["samples"]
        assert record.state == f"incomplete: 1 sample failed ({error})"
        assert not record.problems


@pytest.mark.parametrize("kind", FAILURES)
def test_a_setting_that_fails_alone_leaves_the_others_complete(sweep, tmp_path, capsys, kind):
    def fails(settings, call):
        together, alone = call == 2, len(settings) == 1 and settings[0].budget == 64
        return FAILURES[kind] if together or alone else None

    with refused(None) as caught:
        sweep(fails)
    assert "1 of 2" in caught.value.why
    shown = capsys.readouterr().out
    assert "2 of 3" in shown
    assert "incomplete" in shown
    by_method = {record.method: record for record in records(tmp_path)}
    assert by_method["full"].state == "complete"
    assert list(by_method["snapkv"].failures) == [FAILING]


def test_the_next_run_tries_again_what_failed_and_nothing_else(sweep, tmp_path):
    with pytest.raises(UserError):
        sweep(second(PREFILL))
    with pytest.raises(UserError):
        sweep(lambda settings, call: PREFILL)
    assert snapkv(tmp_path).summary["failed"] == 1
    assert sweep(never) == 1
    assert snapkv(tmp_path).state == "complete"
    assert "failed" not in snapkv(tmp_path).summary
    assert snapkv(tmp_path).summary["n"] == 3
    assert sweep(never) == 0
    lines = [json.loads(text) for text in (snapkv(tmp_path).path / "samples.jsonl").read_text().splitlines()]
    assert [("error" in line, line["id"] == FAILING) for line in lines].count((True, True)) == 2


def test_a_narrower_run_without_the_failed_prompt_is_complete(sweep, tmp_path):
    with pytest.raises(UserError):
        sweep(second(PREFILL))
    assert sweep(never, "eval.depths=[0]") == 0
    assert snapkv(tmp_path).only(["L200-D0-N0"]).summary["n"] == 1
    assert "failed" not in snapkv(tmp_path).only(["L200-D0-N0"]).summary
    assert snapkv(tmp_path).summary["failed"] == 1


def test_prompts_that_all_fail_leave_no_summary(sweep, tmp_path):
    with refused(None):
        sweep(lambda settings, call: PREFILL)
    assert not list(tmp_path.rglob("summary.json"))
    assert snapkv(tmp_path).state == f"no summary: 3 samples failed ({PREFILL})"
    assert not comparisons(records(tmp_path), "score")
    assert sample_frame(records(tmp_path)).empty


def test_a_mistake_still_ends_the_setting(sweep, tmp_path):
    mistake = UserError("model", "use another model")
    with refused(None) as caught:
        sweep(lambda settings, call: mistake)
    assert str(caught.value) == str(mistake)
    assert all(path.read_text() == "" for path in tmp_path.rglob("samples.jsonl"))


def test_a_result_that_is_not_finite_is_a_failure(sweep, tmp_path, monkeypatch):
    line = batches.sample_line

    def with_nan(model, sample, *rest):
        return line(model, sample, *rest) | ({"score": float("nan")} if sample.id == FAILING else {})

    monkeypatch.setattr(batches, "sample_line", with_nan)
    with refused(None):
        sweep(never)
    assert list(snapkv(tmp_path).failures) == [FAILING]
    assert snapkv(tmp_path).summary["n"] == 2


WRITES = """
from dataclasses import dataclass

from baselines.snapkv import SnapKVScorer
from compresskv.context import Context


@dataclass(frozen=True)
class Normalises:
    window: int

    def __call__(self, layer):
        keys = layer.keys
        keys /= keys.norm(dim=-1, keepdim=True)
        return SnapKVScorer()(layer)


def scorer(context: Context) -> Normalises:
    return Normalises(context.observation.window)
"""

WRITES_YAML = """
defaults:
  - allocator: uniform
  - _self_
name: normalises
scorer:
  _target_: normalises_keys.scorer
plain:
  scorer: normalises_keys.scorer
  allocator: baselines.uniform.allocator
"""


@pytest.mark.parametrize(
    ("names", "chunk"),
    [(["normalises", "snapkv", "knorm"], []), (["snapkv", "full", "knorm", "normalises"], ["prefill_chunk=64"])],
)
def test_a_method_that_writes_to_the_prompt_fails_alone(on_tiny_model, tiny, tmp_path, monkeypatch, names, chunk):
    (tmp_path / "normalises_keys.py").write_text(WRITES)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "normalises.yaml").write_text(WRITES_YAML)
    monkeypatch.syspath_prepend(str(tmp_path))

    def samples(chosen, folder):
        given = [*GRID, *tiny, f"paths.results={tmp_path / folder}", *chunk, "budget=64"]
        run([job(*given, f"method={name}", config_dir=tmp_path / "conf") for name in chosen])

    def lines(folder):
        kept = ("prediction", "score", "kept", "realised_budget", "prompt_sha256")
        return {
            record.method: {id: [line.get(name) for name in kept] for id, line in record.samples.items()}
            for record in records(tmp_path / folder)
            if record.samples
        }

    with refused(None) as caught:
        samples(names, "with")
    assert f"1 of {len(names)}" in caught.value.why
    assert "Normalises" in caught.value.why
    others = [name for name in names if name != "normalises"]
    samples(others, "without")
    assert lines("with") == lines("without")
    assert set(lines("with")) == set(others)
