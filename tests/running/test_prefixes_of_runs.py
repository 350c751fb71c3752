"""Runs whose prompts share computed chunks: the same lines in any order, after a kill, and without sharing."""

import json

import pytest

from compresskv import models
from evals.report import terminal
from evals.running import batches, tasks
from evals.running.sweep import run
from tests.support.jobs import job

GRID = ["eval.lengths=[300,420]", "eval.depths=2", "eval.max_new_tokens=3", "prefill_chunk=32", "budget=64"]
METHODS = ("full", "snapkv", "cake")


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture(scope="module")
def sweep(checkpoint):
    """Run the grid into a folder of results, `most` prompts of it; returns the stores of chunks that were made."""
    given = [f"model.path={checkpoint}", "model.dtype=bfloat16", "model.device=cpu"]
    loaded = models.load(job(*given).model)
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

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(models, "load", lambda config: loaded)
            patched.setattr(terminal, "_drawn", lambda *of: [])
            patched.setattr(batches, "generate", killed)
            patched.setattr(tasks, "PrefixStore", store)
            common = [*GRID, *given, f"paths.results={results}", *overrides]
            run([job(*common, f"method={method}") for method in METHODS])
        return stores

    return go


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory):
    """The lines of a run whose prompts share chunks."""
    results = tmp_path_factory.mktemp("whole")
    (shared,) = sweep(results)
    assert shared.reused > 300
    return lines(results)


def lines(results):
    """Every line by folder and id, without its time."""
    found = {}
    for path in results.rglob("samples.jsonl"):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            line.pop("timing")
            found[path.parent.name, path.parent.parent.name, line["id"]] = line
    return found


def test_sharing_changes_no_line(sweep, whole, tmp_path):
    (apart,) = sweep(tmp_path, share=False)
    assert apart.reused == 0
    assert lines(tmp_path) == whole
    assert len(whole) == 12


def test_a_kill_and_another_order_change_no_line(sweep, whole, tmp_path):
    with pytest.raises(Killed):
        sweep(tmp_path, most=2)
    assert 0 < len(lines(tmp_path)) < 12
    sweep(tmp_path, "eval.depths=[100,0]", "eval.lengths=[420,300]")
    assert lines(tmp_path) == whole


def test_where_memory_is_short_nothing_is_shared_and_no_prompt_fails(sweep, whole, tmp_path):
    (store,) = sweep(tmp_path, cramped=True)
    assert store.capacity == 0
    assert lines(tmp_path) == whole
