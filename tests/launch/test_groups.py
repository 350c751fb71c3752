"""Which jobs form a group, with which configurations, and errors without SLURM."""

import dataclasses
import json
from itertools import product

import pytest
from omegaconf import OmegaConf

from evals.launch.groups import Group, groups, sweep_jobs
from evals.launch.slurm.config import SlurmConfig
from evals.launch.slurm.submit import bundles
from tests.support.command import ROOT, run_process
from tests.support.jobs import job
from tests.support.refusals import assert_refused


def planned(*sweep):
    """The groups of a sweep of all combinations, given as lists of overrides."""
    return groups([job(*given) for given in product(*sweep)])


def test_one_group_a_model_and_evaluation():
    found = planned(["model.name=a", "model.name=b"], ["method=full", "method=snapkv"], ["budget=64", "budget=96"])
    assert [group.name for group in found] == ["a niah", "b niah"]
    assert [[job.name for job in group.jobs] for group in found] == [["FullKV", "FullKV", "SnapKV 64", "SnapKV 96"]] * 2
    assert {config["model"]["name"] for config in found[1].configs} == {"b"}


def test_bundles_hold_groups_of_one_model():
    named = [Group(model, "niah", "", ()) for model in ("a", "b", "a", "a", "b")]
    assert bundles(named, 1) == [[0], [2], [3], [1], [4]]
    assert bundles(named, 2) == [[0, 2], [3], [1, 4]]
    assert bundles(named, 9) == [[0, 2, 3], [1, 4]]


def test_one_group_a_task():
    both = "eval.tasks=[trec,lcc]"
    found = planned(["eval=longbench"], [both, "eval.tasks=[trec]"], ["method=full", "method=knorm"])
    assert [group.unit for group in found] == ["trec", "lcc"]
    for group in found:
        assert [job.name for job in group.jobs] == ["FullKV", "Key norm 256"]
        assert {job.eval.tasks for job in group.jobs} == {(group.unit,)}
        assert [config["eval"]["tasks"] for config in group.configs] == [[group.unit]] * 2
    assert sum(len(planned(["eval=longbench"], [f"eval.tasks={names}"])) for names in ("english", "all21")) == 16 + 21


def test_a_group_is_the_same_in_the_process_that_gets_it():
    (group,) = planned(["method=full", "method=snapkv"], ["observation.window=8", "observation.window=16"])
    assert sweep_jobs(json.loads(json.dumps(group.configs))) == list(group.jobs)
    assert [job.name for job in group.jobs] == [
        "FullKV window=8",
        "FullKV window=16",
        *(f"SnapKV 256 window={n}" for n in (8, 16)),
    ]


def test_jobs_that_may_share_a_folder_stay_together():
    (group,) = planned(["method=full"], ["eval.lengths=[1000]", "eval.lengths=[1000,2000]"])
    assert len(group.jobs) == 2


@pytest.fixture
def without(tmp_path):
    """A run on the slurm launcher without SLURM's programs, or without submitit."""

    def go(*overrides, submitit=True):
        env = {"PATH": str(tmp_path), "PYTHONPATH": ""}
        if not submitit:
            (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['submitit'] = None\n")
            env["PYTHONPATH"] = str(tmp_path)
        command = ["-m", "hydra/launcher=slurm", f"paths.results={tmp_path}", "method=full"]
        return run_process(*command, *overrides, env=env)

    return go


@pytest.mark.parametrize(
    ("overrides", "submitit", "field"),
    [
        ([], False, "hydra/launcher"),
        ([], True, "hydra/launcher"),
        (["hydra.launcher.time=soon"], True, "hydra.launcher.time"),
    ],
)
def test_a_mistake_is_a_sentence(without, overrides, submitit, field):
    done = without(*overrides, submitit=submitit)
    assert_refused(done, field)
    assert len(done.stderr.splitlines()) == 1


def test_the_launchers_settings_are_all_in_its_configuration():
    written = OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml")
    assert set(written) - {"_target_", "_convert_"} == {field.name for field in dataclasses.fields(SlurmConfig)}
