"""A sweep with fidelity=true: what its lines, summaries and tables say."""

import json
from statistics import fmean

import pytest

from evals.results.__main__ import main
from evals.results.record import records
from evals.running.sweep import run
from tests.support.jobs import job
from tests.support.refusals import refused


@pytest.fixture
def overrides(checkpoint, tmp_path):
    grid = ["eval.lengths=[200]", "eval.depths=3", "eval.max_new_tokens=6"]
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    return [*grid, *model, f"paths.results={tmp_path}", "fidelity=true"]


def test_lines_summaries_and_tables(overrides, tmp_path, capsys):
    settings = [("full", 64), ("snapkv", 32), ("snapkv", 250)]
    run([job(*overrides, f"method={method}", f"budget={budget}") for method, budget in settings])
    assert "fidelity to the full cache" in capsys.readouterr().out
    summaries = {(record.method, record.budget): record for record in records(tmp_path)}
    for record in summaries.values():
        assert record.state == "complete"
        assert record.summary["fidelity"]["kl"]["n"] == 3
        assert record.summary["fidelity"]["reference_nll"]["mean"] > 0
        for line in record.covered:
            assert fmean(line["kl_per_token"]) == pytest.approx(line["kl"], abs=1e-4)
    assert summaries["full", None].summary["fidelity"]["kl"]["mean"] == 0
    assert summaries["snapkv", 250].summary["fidelity"]["kl"]["mean"] < 1e-6
    assert summaries["snapkv", 32].summary["fidelity"]["kl"]["mean"] > 1e-4
    assert main(["verify", "--results", str(tmp_path)]) == 0
    assert main(["compare", "--metric", "kl", "--results", str(tmp_path)]) == 0
    assert "SnapKV 32" in capsys.readouterr().out


def test_it_changes_no_prediction(overrides, tmp_path):
    run([job(*overrides, "method=snapkv", "budget=32")])
    run([job(*overrides, "method=snapkv", "budget=32", "fidelity=false")])
    lines = [(record.path / "samples.jsonl").read_text().splitlines() for record in records(tmp_path)]
    first, second = json.loads(lines[0][1]), json.loads(lines[1][1])
    assert {"kl", "agreement", "reference_nll", "kl_per_token"} == set(first) ^ set(second)
    for name in ("prediction", "score", "kept", "prompt_sha256", "prompt_tail"):
        assert first[name] == second[name]


def test_an_evaluation_without_samples_is_refused():
    with refused("fidelity", value=True):
        job("eval=efficiency", "fidelity=true")
