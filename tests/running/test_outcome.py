"""A sweep on one machine: what fails does not end the rest, and is accounted for."""

import json

import pytest

from evals.launch.groups import sweep_jobs
from evals.running.outcome import Entry, show
from tests.support.command import run
from tests.support.jobs import composed
from tests.support.refusals import refused

GRID = ["eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4"]


@pytest.fixture
def sweep(tiny):
    return lambda *overrides: run("-m", *GRID, *tiny, "budget=64", *overrides, env={"COLUMNS": "200"})


def settings(tmp_path):
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    return {(summary["model"], summary["method"]) for summary in found}


def test_a_model_or_setting_that_cannot_be_does_not_end_the_others(sweep, checkpoint, tmp_path):
    done = sweep(f"model.path=/nowhere,{checkpoint}", "method=snapkv,compresskv,knorm")
    assert done.returncode == 1
    assert settings(tmp_path) == {("tiny-llama", "snapkv"), ("tiny-llama", "knorm")}
    assert "Traceback" not in done.stderr
    assert "4 of 6" in done.stderr.splitlines()[-1]
    assert "/nowhere" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if " failed " in line and "tiny-llama" in line]
    assert "CompressKV 64" in row
    assert "eval=calibrate" in done.stdout
    again = sweep("method=snapkv,knorm")
    assert again.returncode == 0
    assert "2 samples, 2 of them from before" in again.stdout


def test_a_model_that_raises_does_not_end_the_others(sweep, tmp_path):
    models = ["model.name=raises,fine", "method=snapkv", "method.scorer._target_=tests.launch.slurm.sabotage.scorer"]
    done = sweep(*models)
    assert done.returncode == 1
    assert settings(tmp_path) == {("fine", "snapkv-sabotage")}
    assert "ValueError: sabotaged" in done.stderr
    assert "ValueError: sabotaged" in done.stdout
    assert "1 of 2" in done.stderr.splitlines()[-1]


def labels(config, **changes):
    """What the jobs of a sweep are called whose configurations have these values of one setting, in turn."""
    ((name, values),) = changes.items()
    group, field = name.split("__")
    configs = [{**config, group: {**config[group], field: value}} for value in values]
    return [job.name for job in sweep_jobs(configs)]


def test_settings_of_one_method_and_budget_are_told_apart():
    config = composed("method=snapkv", "budget=64")
    assert labels(config, observation__window=(8, 16)) == ["SnapKV 64 window=8", "SnapKV 64 window=16"]
    assert labels(config, model__path=("a/run", "b/run")) == ["SnapKV 64 path=a/run", "SnapKV 64 path=b/run"]
    assert labels(config, protocol__score_dtype=("float32",)) == ["SnapKV 64"]
    assert labels(config, paths__results=("a", "b")) == ["SnapKV 64", "SnapKV 64"]
    full = composed("method=full")
    assert [job.name for job in sweep_jobs([full, {**full, "budget": 64}])] == ["FullKV", "FullKV"]


def test_a_setting_is_counted_once_for_all_its_tasks(capsys):
    entries = [Entry("tiny", "longbench", task, "SnapKV 64", "failed", f"no {task}") for task in ("qasper", "trec")]
    measured = Entry("tiny", "longbench", "qasper", "full", "ran", "", written="nowhere")
    with refused(None) as caught:
        show([*entries, measured], None)
    assert "1 of 2" in caught.value.why
