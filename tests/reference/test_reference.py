"""The reference run: its sweeps compose, and what is committed is an ordinary results tree without texts."""

import json
import re

import pytest

from evals import compose
from evals.longbench.tables import row_check
from evals.reference.__main__ import SWEEPS, run_and_export
from evals.reference.export import export
from evals.results import frame
from evals.results.record import records
from tests.support.refusals import refused
from tests.support.trees import setting


@pytest.fixture(autouse=True)
def one_artefact(monkeypatch):
    monkeypatch.setattr("evals.reference.export.ARTEFACTS", ("fig9_budgets",))


def test_sweeps_compose():
    for line in SWEEPS["needles"][2:] + SWEEPS["longbench"][:1] + SWEEPS["masking"]:
        one = re.sub(r",[\w,.]+", "", line)  # the first of every axis
        [first, *_] = compose.sweep(*one.split(), "budget=64")
        assert first["model"]["name"] == "smollm2-135m"


def test_a_line_sweeps_over_its_own_axes_and_those_of_the_experiment():
    configs = compose.sweep("experiment=table3_components", "budget=64,128", "method=snapkv")
    assert [(config["budget"], config["method"]["allocator"]["_target_"].split(".")[1]) for config in configs] == [
        (64, "uniform"),
        (128, "uniform"),
        (64, "layer_error"),
        (128, "layer_error"),
    ]


def test_a_tree_is_committed_without_texts(tmp_path):
    built = {"EvictionMethod": {"scorer": {"SemanticHeadScorer": {"heads": [[7], [3]]}}}}
    setting(tmp_path / "full", {"a": 0.0, "b": 100.0}, method_in_full=built)
    (tmp_path / "small" / "runs" / "old").mkdir(parents=True)
    (tmp_path / "small" / "demo.json").write_text("stays")
    assert export(tmp_path / "full", tmp_path / "small") == 1
    [before], [after] = records(tmp_path / "full"), records(tmp_path / "small")
    assert (after.state, after.lines.unchecked, after.name) == ("complete", 0, before.name)
    assert not (tmp_path / "small" / "runs" / "old").exists()
    assert (tmp_path / "small" / "demo.json").exists()
    assert [line["score"] for line in after.covered] == [0.0, 100.0]
    for field in ("score", "interval", "n", "cache_bytes", "dtype", "samples", "environment", "method_in_full"):
        assert after.summary[field] == before.summary[field]
    for line in after.samples.values():
        assert {type(value) for key, value in line.items() if key not in ("id", "checksum")} <= {int, float, bool}
    assert frame(tmp_path / "small", "sample")["score"].tolist() == [0.0, 100.0]


def text_of(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_faulty_or_no_results_are_not_committed(tmp_path):
    with refused("results"):
        export(tmp_path, tmp_path / "small")
    record = setting(tmp_path)
    (record.path / "samples.jsonl").write_text("")
    with refused(None):
        export(tmp_path, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_run_of_two_parts_from_prompts_to_what_is_committed(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "data").mkdir()
    row = {"input": "Where is the cat?", "context": "The cat sat. " * 40, "answers": ["on the mat"], "length": 9}
    (tmp_path / "data" / "qasper.jsonl").write_text(json.dumps(row | {"all_classes": None}) + "\n")
    lines = {
        "needles": ["method=snapkv,full budget=32 eval.lengths=[200] eval.depths=1 eval.needles=2"],
        "longbench": ["eval=longbench eval.tasks=[qasper] method=snapkv budget=32 fidelity=true"],
    }
    monkeypatch.setattr("evals.reference.__main__.SWEEPS", lines)
    places = (tmp_path / "full", tmp_path / "small")
    tiny = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    run_and_export(["needles", "longbench"], str(tmp_path / "data"), *places, tiny)
    committed = records(tmp_path / "small")
    assert [(record.eval, record.method, len(record.covered)) for record in committed] == [
        ("longbench", "snapkv", 1),
        ("niah", "full", 2),
        ("niah", "snapkv", 2),
    ]
    assert not [record.problem for record in committed if record.problems]
    [line] = committed[0].covered
    assert line["official"] is False
    assert line["kl"] >= 0
    assert row_check("qasper", [line]).matching == 0
    whole, small = (text_of(place / "runs") for place in places)
    for hidden in ("Where is the cat?", "on the mat", str(tmp_path)):
        assert hidden in whole
        assert hidden not in small
    run_and_export(["none"], "hub", *places)
    with refused("parts", value="maps"):
        run_and_export(["maps"], "hub", *places)
