"""An evaluation from outside the tree: one folder and one YAML, and every generic part serves it."""

import json
import subprocess
import sys

import pytest

from evals.compose import plug_in
from evals.job import Evaluation
from tests.support.command import ROOT, folders, run_process
from tests.support.refusals import assert_refused, refused

CONFIG = '''
"""Count to a number."""
from dataclasses import dataclass
from evals.job import SampledEvaluation


@dataclass(frozen=True)
class Counting(SampledEvaluation):
    numbers: tuple[int, ...]

    def units(self):
        return {f"to{number}": {"numbers": [number]} for number in self.numbers}
'''

TASK = """
from dataclasses import dataclass
from typing import Any
from compresskv.engine.decode import Stopping
from evals.job import Sample


def make_tasks(model, config, protocol):
    return [CountTo(model, number) for number in config.numbers]


@dataclass(frozen=True)
class CountTo:
    model: Any
    number: int
    max_new_tokens = 4

    @property
    def name(self):
        return f"to{self.number}"

    @property
    def sample_ids(self):
        return ["up", "down"]

    @property
    def identity(self):
        return {"number": self.number}

    @property
    def longest_prompt(self):
        return self.number * 3

    def sample(self, id):
        numbers = range(self.number) if id == "up" else range(self.number, 0, -1)
        ids = self.model.encode(" ".join(map(str, numbers)))
        return Sample(id, ids, Stopping(4), lambda text: {"score": float(len(text))}, {"truncated": False})

    def first_prompt(self):
        return self.sample("up").ids.numel()
"""

YAML = """
_target_: counting.config.Counting
name: counting
numbers: [60, 80]
"""


@pytest.fixture
def outside(tmp_path, checkpoint):
    """The command line that finds the package, and its environment."""
    package = tmp_path / "counting"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "config.py").write_text(CONFIG)
    (package / "evaluation.py").write_text(TASK)
    (tmp_path / "conf" / "eval").mkdir(parents=True)
    (tmp_path / "conf" / "eval" / "counting.yaml").write_text(YAML)
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    command = [f"--config-dir={tmp_path / 'conf'}", "eval=counting", f"paths.results={tmp_path / 'out'}", *model]
    return command, {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}


def test_a_sweep_of_an_own_evaluation(outside, tmp_path):
    command, environment = outside
    done = run_process("-m", *command, "method=snapkv,full", "budget=64", env=environment)
    assert done.returncode == 0, done.stderr
    assert "tiny-llama · counting" in done.stdout
    assert {folder.relative_to(tmp_path / "out" / "runs").parts[1:3] for folder in folders(tmp_path)} == {
        ("counting", "to60"),
        ("counting", "to80"),
    }
    for folder in folders(tmp_path):
        assert json.loads((folder / "summary.json").read_text())["n"] == 2


@pytest.mark.slow
def test_its_units_run_in_processes_of_their_own(outside, tmp_path):
    command, environment = outside
    model = command[3]
    sweep = ["-m", *command[:3], model, "model.dtype=float32", "method=snapkv", "budget=64"]
    done = run_process(*sweep, "hydra.launcher.devices=[0,1]", env={**environment, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "tiny-llama counting to80" in done.stderr
    assert len(folders(tmp_path)) == 2


def test_its_settings_are_checked(outside):
    command, environment = outside
    done = run_process(*command, "eval.numbers=[many]", env=environment)
    assert done.returncode != 0
    assert_refused(done, "eval.numbers[0]")


@pytest.mark.parametrize("target", [None, "", "evals.nowhere.Config", "pathlib.Path", "evals.job", 3])
def test_a_target_that_is_no_evaluation_is_a_sentence(target):
    with refused("eval._target_"):
        plug_in("eval", Evaluation, {"_target_": target, "name": "x"})


def test_jobs_need_neither_torch_nor_an_evaluation():
    code = "import sys, evals.job, evals.compose; assert not {'torch', 'evals.niah.config'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_generic_modules_name_no_evaluation():
    names = {path.parent.name for path in (ROOT / "evals").glob("*/config.py")}
    assert {"niah", "longbench", "efficiency", "calibration"} <= names
    # The paper's own tables and figures, in evals/report, are of known evaluations; what every run shows is not.
    generic = [ROOT / "evals" / "report" / "terminal.py"]
    for folder in ("", "running", "launch", "results", "loggers"):
        generic += (ROOT / "evals" / folder).glob("*.py")
    generic.remove(ROOT / "evals" / "__main__.py")  # the list of commands, of which LongBench's scorer is one
    for path in generic:
        for name in names:
            assert f"evals.{name}" not in path.read_text(), f"{path} imports {name}"
