"""Which jobs become one group, with what command line; and what is said where there is no SLURM."""

import dataclasses
from itertools import product

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from evals.compose import job
from evals.launch.groups import Group, groups
from evals.launch.processes import command_lines
from evals.launch.slurm.config import SlurmConfig
from evals.launch.slurm.submit import bundles
from tests.support.command import ROOT, run_process
from tests.support.refusals import assert_refused


def planned(*sweep, product_of=True):
    """The groups of a sweep, given as lists of overrides: all combinations, or else the jobs themselves."""
    overrides = list(product(*sweep)) if product_of else list(sweep)
    return groups([job(*given) for given in overrides], overrides)


def test_one_group_a_model_and_evaluation():
    found = planned(["model.name=a", "model.name=b"], ["method=full", "method=snapkv"], ["budget=64", "budget=96"])
    assert [group.name for group in found] == ["a niah", "b niah"]
    assert [len(group.jobs) for group in found] == [4, 4]
    assert found[1].sweeps == (("model.name=b", "method=full,snapkv", "budget=64,96"),)


def test_bundles_hold_groups_of_one_model():
    named = [Group(model, "niah", "", (), ()) for model in ("a", "b", "a", "a", "b")]
    assert bundles(named, 1) == [[0], [2], [3], [1], [4]]
    assert bundles(named, 2) == [[0, 2], [3], [1, 4]]
    assert bundles(named, 9) == [[0, 2, 3], [1, 4]]


@pytest.mark.parametrize(
    "name", ["plain", "with blank", "josé", "it's", "a,b=c", "[x]{y}", "a\\b", "a\\'b", "$x", "日本"]
)
def test_the_path_of_an_outcome_survives_hydra_s_grammar(name, tmp_path):
    (group,) = planned(["method=full"])
    ((path, line),) = command_lines(["run"], group, tmp_path / name, 7).items()
    parsed = OverridesParser.create().parse_override(line[1])
    assert parsed.key_or_group == "hydra.launcher.outcome"
    assert str(parsed.value()) == str(path) == str(tmp_path / name / "outcome-7-0.json")


def test_one_group_a_task():
    both = "eval.tasks=[trec,lcc]"
    found = planned(["eval=longbench"], [both, "eval.tasks=[trec]"], ["method=full", "method=knorm"])
    assert [group.unit for group in found] == ["trec", "lcc"]
    assert [group.sweeps for group in found] == [
        (("eval=longbench", "method=full,knorm", f"eval.tasks=[{task}]"),) for task in ("trec", "lcc")
    ]
    assert sum(len(planned(["eval=longbench"], [f"eval.tasks={names}"])) for names in ("english", "all21")) == 16 + 21


def test_jobs_that_may_share_a_folder_stay_together():
    (group,) = planned(["method=full"], ["eval.lengths=[1000]", "eval.lengths=[1000,2000]"])
    assert group.sweeps == (("method=full", "eval.lengths=[1000],[1000,2000]"),)


def test_jobs_that_are_no_grid_keep_a_command_line_each():
    jobs = [("method=full", "budget=64"), ("method=snapkv", "budget=64"), ("method=snapkv", "budget=96")]
    (group,) = planned(*jobs, product_of=False)
    assert group.sweeps == tuple(jobs)
    (group,) = planned(("method=full",), ("method=snapkv", "budget=96"), product_of=False)
    assert group.sweeps == (("method=full",), ("method=snapkv", "budget=96"))


@pytest.fixture
def without(tmp_path):
    """A run on the slurm launcher where SLURM's programs are missing, or submitit is."""

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
