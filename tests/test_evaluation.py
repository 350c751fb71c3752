"""An evaluation from outside the tree: the one of docs/adding-an-evaluation.md."""

import json
import re
import sys

import pytest

from evals.compose import plug_in
from evals.job import Evaluation
from evals.longbench.tasks import TASKS
from tests.support.command import ROOT, folders, run
from tests.support.refusals import assert_refused, refused

PAGE = ROOT / "docs" / "adding-an-evaluation.md"


@pytest.fixture
def command(tmp_path, checkpoint, monkeypatch):
    """The command line that runs the evaluation of the documentation, which Python finds."""
    config, evaluation, yaml, tables = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = {
        "counting/__init__.py": "",
        "counting/config.py": config,
        "counting/evaluation.py": evaluation,
        "counting/tables.py": tables,
        "conf/eval/counting.yaml": yaml,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    monkeypatch.syspath_prepend(str(tmp_path))
    yield [f"--config-dir={tmp_path / 'conf'}", "eval=counting", f"paths.results={tmp_path / 'out'}", *model]
    for name in [name for name in sys.modules if name.partition(".")[0] == "counting"]:
        del sys.modules[name]


def test_a_sweep_of_an_own_evaluation(command, tmp_path):
    done = run("-m", *command, "method=snapkv,full", "budget=64", env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "tiny-llama · counting" in done.stdout
    assert {folder.relative_to(tmp_path / "out" / "runs").parts[1:3] for folder in folders(tmp_path)} == {
        ("counting", "to60"),
        ("counting", "to80"),
    }
    for folder in folders(tmp_path):
        assert json.loads((folder / "summary.json").read_text())["n"] == 2


def test_its_settings_are_checked(command):
    assert_refused(run(*command, "eval.numbers=[many]"), "eval.numbers[0]")


@pytest.mark.parametrize("target", [None, "", "evals.nowhere.Config", "pathlib.Path", "evals.job", 3])
def test_a_target_that_is_no_evaluation_is_a_sentence(target):
    with refused("eval._target_"):
        plug_in("eval", Evaluation, {"_target_": target, "name": "x"})


def test_generic_modules_name_no_evaluation():
    names = {path.parent.name for path in (ROOT / "evals").glob("*/config.py")}
    assert {"niah", "longbench", "efficiency", "calibration"} <= names
    generic = []
    for folder in ("", "running", "launch", "results", "loggers", "report", "tables"):
        generic += (ROOT / "evals" / folder).glob("*.py")
    generic.remove(ROOT / "evals" / "cli.py")  # the list of commands, of which LongBench's scorer is one
    for path in generic:
        for name in names:
            assert f"evals.{name}" not in path.read_text(), f"{path} imports {name}"


def test_reports_know_no_evaluation_task_or_field_of_one():
    names = {path.stem for path in (ROOT / "conf" / "eval").glob("*.yaml")} | set(TASKS)
    names = names - {"attention", "jsonl"} | {"needle", "haystack", "masked", "max_length"}
    for folder in ("evals/report", "evals/tables"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".html"):
                words = set(re.findall(r"[\w-]+", path.read_text().lower()))
                assert not words & names, f"{path}: {words & names}"
