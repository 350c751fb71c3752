"""Runs whose prompts share computed chunks: the same lines in any order, after a kill, and without sharing."""

import json

import pytest

from compresskv import models
from evals.report import terminal
from evals.running import batches, tasks
from evals.running.sweep import run
from tests.support.jobs import job

GRID = ["eval.lengths=[300,420]", "eval.depths=3", "eval.max_new_tokens=3", "prefill_chunk=32", "budget=64"]
DEVICE = ["model.dtype=bfloat16", "model.device=cpu"]
METHODS = ("full", "snapkv", "cake")


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def sweep(checkpoint, tmp_path, monkeypatch):
    """Run the grid into a folder of results, `most` prompts of it; returns the stores of chunks that were made."""
    loaded = models.load(job(f"model.path={checkpoint}", *DEVICE).model)
    monkeypatch.setattr(models, "load", lambda config: loaded)
    monkeypatch.setattr(terminal, "_drawn", lambda *rest: [])
    generate, store_of = batches.generate, tasks.PrefixStore

    def go(results, *overrides, most=100, share=True, cramped=False):
        stores, left = [], [most]

        def killed(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            if cramped and stores[-1].nbytes:
                raise MemoryError
            return generate(*arguments, **options)

        def store(capacity):
            stores.append(store_of(capacity if share else 0))
            return stores[-1]

        monkeypatch.setattr(batches, "generate", killed)
        monkeypatch.setattr(tasks, "PrefixStore", store)
        common = [*GRID, *DEVICE, f"model.path={checkpoint}", f"paths.results={results}", *overrides]
        run([job(*common, f"method={method}") for method in METHODS])
        return stores

    return go


def lines(results):
    """Every line by folder and id, without its time."""
    found = {}
    for path in results.rglob("samples.jsonl"):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            line.pop("timing")
            found[path.parent.name, path.parent.parent.name, line["id"]] = line
    return found


def test_sharing_changes_no_line(sweep, tmp_path):
    (shared,) = sweep(tmp_path / "shared")
    (apart,) = sweep(tmp_path / "apart", share=False)
    assert shared.reused > 300
    assert apart.reused == 0
    assert lines(tmp_path / "shared") == lines(tmp_path / "apart")
    assert len(lines(tmp_path / "shared")) == 18


def test_a_kill_and_another_order_change_no_line(sweep, tmp_path):
    sweep(tmp_path / "whole")
    with pytest.raises(Killed):
        sweep(tmp_path / "killed", most=2)
    assert 0 < len(lines(tmp_path / "killed")) < 18
    sweep(tmp_path / "killed", "eval.depths=[100,50,0]", "eval.lengths=[420,300]")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_where_memory_is_short_nothing_is_shared_and_no_prompt_fails(sweep, tmp_path):
    sweep(tmp_path / "roomy")
    (store,) = sweep(tmp_path / "cramped", cramped=True)
    assert store.capacity == 0
    assert lines(tmp_path / "cramped") == lines(tmp_path / "roomy")
