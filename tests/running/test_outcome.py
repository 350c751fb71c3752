"""A sweep on one machine: what fails does not end the rest, and is accounted for."""

import json

import pytest

from tests.support.command import run

GRID = ["eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4"]


@pytest.fixture
def sweep(checkpoint, tmp_path):
    tiny = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"paths.results={tmp_path}"]
    return lambda *overrides: run("-m", *GRID, *tiny, *overrides, env={"COLUMNS": "200"})


def settings(tmp_path):
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    return {(summary["model"], summary["method"]) for summary in found}


def test_a_setting_that_cannot_be_built_does_not_end_the_others(sweep, tmp_path):
    done = sweep("method=snapkv,compresskv,knorm", "budget=64")
    assert done.returncode == 1
    assert settings(tmp_path) == {("tiny-llama", "snapkv"), ("tiny-llama", "knorm")}
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 3 settings failed")
    (row,) = [line for line in done.stdout.splitlines() if " failed " in line]
    assert "compresskv 64" in row
    assert "eval=calibrate" in done.stdout
    again = sweep("method=snapkv,knorm", "budget=64")
    assert again.returncode == 0
    assert "2 samples, 2 of them from before" in again.stdout


def test_a_model_that_fails_does_not_end_the_others(sweep, tmp_path):
    models = ["model.name=raises,fine", "method=snapkv", "method.scorer._target_=tests.launch.slurm.sabotage.scorer"]
    done = sweep(*models, "budget=64,96")
    assert done.returncode == 1
    assert settings(tmp_path) == {("fine", "snapkv-sabotage")}
    assert "ValueError: sabotaged" in done.stderr
    assert "ValueError: sabotaged" in done.stdout
    assert "2 of 4 settings failed" in done.stderr


def test_a_model_that_is_not_there_does_not_end_the_others(sweep, checkpoint, tmp_path):
    done = sweep(f"model.path=/nowhere,{checkpoint}", "method=full,knorm", "budget=64")
    assert done.returncode == 1
    assert settings(tmp_path) == {("tiny-llama", "full"), ("tiny-llama", "knorm")}
    assert "Traceback" not in done.stderr
    assert "/nowhere" in done.stdout
