"""Every experiment composes at every size for every model, and one runs to its artefacts."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from compresskv import calibration
from compresskv.folders import CONF
from compresskv.selecting_heads import count_heads
from evals.compose import axes, job_from, resolved
from evals.experiments import ITEMS
from evals.report.selection import settings_of
from evals.results.record import records
from evals.tables.methods import METHODS
from tests.support.command import ROOT, run

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if path.stem != "demo")
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("[!_]*.yaml"))
SIZES = ("+size=smoke", "+size=paper")


def check(experiment, size, model):
    """The settings of the experiment's sweep are jobs, and the sweep has methods and budgets."""
    overrides = [f"experiment={experiment}", f"model={model}", size]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    swept = resolved(config.hydra.sweeper.params)  # of Hydra's own settings, some have no value before a run
    assert "method" in swept
    assert "budget" in swept or "full" in swept["method"]
    with open_dict(config):
        del config["hydra"]
    assert job_from(resolved(config)).model.name == model
    if size == "+size=smoke":
        assert swept["eval"] != "longbench"  # nothing to download
        assert (CONF / "eval" / f"{swept['eval']}.yaml").exists()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", range(len(EXPERIMENTS)))
def test_every_experiment_composes_at_every_size(place, size):
    """Experiments use models in turn, so that every model is composed."""
    check(EXPERIMENTS[place], size, MODELS[place % len(MODELS)])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_for_every_model(experiment, size, model):
    check(experiment, size, model)


def test_every_experiment_has_artefacts_and_every_method_a_name():
    assert set(ITEMS) == set(EXPERIMENTS)
    assert {path.stem for path in (CONF / "method").glob("*.yaml")} <= set(METHODS)


@pytest.mark.parametrize("path", sorted(calibration.FOLDER.glob("*.held_out.json")), ids=lambda path: path.stem)
def test_the_two_rankings_that_are_compared_choose_other_heads(path):
    found = calibration.load(path)
    settings = [config["method"]["scorer"]["heads"] for config in settings_of("v2_table2_selector", found.model)]
    assert len(settings) == 2
    count = count_heads(settings[0], found, found.q_heads)
    traditional, semantic = (found.top_heads(ranking, count) for ranking in ("traditional", "semantic"))
    assert list(map(set, traditional)) != list(map(set, semantic))


def test_numbers_of_heads_are_those_of_each_model():
    known = {"llama-3.1-8b-instruct": [2, 4, 6, 12, 24], "smollm2-135m": [1, 2, 3, 6, 9], "gemma3-270m": [1, 2, 3, 4]}
    for model, counts in known.items():
        assert axes("experiment=table2_heads", f"model={model}")["method.scorer.heads"] == list(map(str, counts))


def test_latency_is_measured_at_the_papers_budget():
    budgets = [axes("experiment=fig8_efficiency", *size)["budget"] for size in ([], ["+size=paper"], ["+size=smoke"])]
    assert budgets == [["256"], ["1024"], ["64", "128"]]


def test_a_run_ends_with_its_artefacts(checkpoint, tmp_path):
    tiny = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"paths.results={tmp_path}"]
    small = ["method=full,snapkv", "budget=64", "eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4"]
    done = run("-m", "experiment=fig5_niah", "+size=smoke", *small, *tiny)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "artefacts" / "fig5_niah"
    assert f"artefacts: {folder}" in done.stdout
    assert "| SnapKV |" in (folder / "table.md").read_text()
    assert (folder / "figure-tiny-llama.png").stat().st_size > 1000
    # Reports find results by the experiment's name, which no folder depends on.
    made = records(tmp_path)
    assert {record.file_config["experiment"] for record in made} == {"fig5_niah"}
    again = run("-m", "eval=niah", "eval.haystack=" + made[0].config["eval"]["haystack"], *small, *tiny)
    assert again.returncode == 0, again.stderr
    assert [record.path for record in records(tmp_path)] == [record.path for record in made]
