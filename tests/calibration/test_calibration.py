"""The calibration command on a few short prompts of the default model, and refusals on the tiny model."""

import json
from pathlib import Path

import pytest

from compresskv import calibration
from compresskv.context import Context
from compresskv.eviction import Observation
from compresskv.observation import ObservationConfig
from evals.calibration import held_out
from evals.calibration.detection import needles
from evals.calibration.held_out import HeldOutCalibration
from evals.longbench.tasks import ENGLISH
from tests.support.calibrations import record
from tests.support.command import run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused

SHORT = (
    "eval=calibrate", "eval.lengths=[250]", "eval.depths=1", "eval.minimum_accepted=1", "eval.max_steps=12",
    "eval.texts=1", "eval.head_counts=[4]",
)  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The folder of a calibration on two needles, made twice, and the samples after each run."""
    folder, samples = tmp_path_factory.mktemp("calibration"), []
    few = [needle for needle in needles() if needle.name in ("beijing", "older")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(held_out, "needles", lambda: few)
        for _ in range(2):
            done = run(*SHORT, f"eval.output={folder}", f"paths.results={folder / 'results'}")
            assert done.returncode == 0, done.stderr
            samples.append({path: path.read_text() for path in (folder / "results").rglob("samples.jsonl")})
    return folder, samples


def test_the_file_has_what_the_method_needs(calibrated):
    folder, _ = calibrated
    written = json.loads((folder / "smollm2-135m.held_out.json").read_text())
    assert sum(written["layer_scores"]) == pytest.approx(1, abs=1e-6)
    assert len(written["layer_scores"]) == len(written["head_scores"]["traditional"]) == 30
    assert len(written["head_scores"]["semantic"][0]) == 9
    assert list(written["text_kl_by_head_count"]) == ["1", "4"]
    assert all(0 < kl < 20 for kl in written["text_kl_by_head_count"].values())
    assert written["texts"] == 1
    assert {"model_fingerprint", "haystack_fingerprint", "accepted", "settings"} <= set(written)
    made = calibration.find("smollm2-135m", "held_out", folder)
    assert len(made.top_heads("semantic", 2)[0]) == 2


def test_it_resumes(calibrated):
    _, (before, after) = calibrated
    assert before == after


@pytest.mark.slow
def test_layer_errors_on_longbench(tiny, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    row = {
        "input": "Where is it?",
        "context": "It is here. " * 30,
        "answers": ["here"],
        "all_classes": ["a"],
        "length": 3,
    }
    for task in ENGLISH:
        (data / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    of_eval = ["eval=calibrate", "eval.source=longbench", f"eval.data={data}", "eval.max_length=700"]
    command = (*of_eval, *tiny, f"eval.output={tmp_path}")
    assert_refused(run(*command), "calibration")
    heads = record(3, 6, model="tiny-llama", heads=2, layer_scores=[0.2, 0.3, 0.5])
    (tmp_path / "tiny-llama.held_out.json").write_text(json.dumps(heads))
    done = run(*command)
    assert done.returncode == 0, done.stderr
    made = calibration.find("tiny-llama", "longbench", tmp_path)
    assert made.source == "longbench"
    assert made.top_heads("semantic", 2) == ((5, 4),) * 3
    assert sum(made.layer_scores) == pytest.approx(1, abs=1e-6)
    assert made.layer_scores != (0.2, 0.3, 0.5)


def test_too_few_answers_are_an_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "needles", lambda: needles()[:2])
    done = run("eval=calibrate", *tiny, "eval.lengths=[200]", "eval.depths=1", f"eval.output={tmp_path}")
    assert done.returncode != 0
    assert_refused(done, "eval.minimum_accepted")
    assert not list(tmp_path.glob("*.json"))


def published(**changes):
    made = calibration.find("llama-3.1-8b-instruct", "published")
    options = {"layers": 32, "q_heads": 32, "kv_heads": 8, "observation": Observation(), **changes}
    return Context("llama-3.1-8b-instruct", calibration=made, **options)


def test_a_calibration_is_refused_for_another_window_or_model():
    assert published().calibrated().heads == 4
    with refused("observation.window", value=16):
        published(observation=Observation(window=16)).calibrated()
    with refused("observation.pooling", value="max"):
        published(observation=Observation(pooling="max")).calibrated()
    with refused("calibration"):
        published(layers=30).calibrated()
    for setting, source in (("auto", "held_out"), ("longbench", "longbench"), ("published", "published")):
        with refused("calibration", value=setting, names="llama-3.1-8b-instruct.published, mistral") as caught:
            Context("unknown", 2, 2, 2, calibration_setting=setting).calibrated()
        assert source in caught.value.why
        assert "eval=calibrate" in caught.value.fix
    with refused("method.scorer.heads", value=33):
        published().calibrated().top_heads("semantic", 33)


def test_depths_are_a_number_of_them_or_a_list(default_model):
    def calibration(*overrides):
        config = job("eval=calibrate", "eval.lengths=[300]", *overrides).eval
        return HeldOutCalibration(default_model, config, ObservationConfig(), Path("results"), None)

    assert job("eval=calibrate", "eval.depths=3").eval.depth_list == (0.0, 0.5, 1.0)
    assert job("eval=calibrate", "eval.depths=[0,12.5]").eval.depth_list == (0.0, 0.125)
    assert job("eval=calibrate", "model.evals.calibrate.depths=[50]").eval.depth_list == (0.5,)
    few, named = (calibration(f"eval.depths={depths}").cells for depths in ("3", "[0,50,100,50]"))
    assert [cell.id for cell in few] == [cell.id for cell in named]
    for depths in ("[50,50.1]", "102"):
        with refused("eval.depths"):
            _ = calibration(f"eval.depths={depths}").cells
