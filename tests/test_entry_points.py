"""What every command says to a flag, a value or a path that cannot be: a sentence, and an exit code that is not 0."""

import json
import runpy
import subprocess
import sys
import warnings

import pytest

from evals.cli import COMMANDS, REFUSED, main
from tests.support.command import ROOT
from tests.support.trees import cells, setting

NOWHERE = "/nowhere/at/all"
LONG = "1" * 5000

WRONG = {
    "report": ["--nope", "nope", f"{NOWHERE} --out {NOWHERE}/x", "--out", "experiment=nope", "experiment=", "x=5"],
    "results": ["", "nope", f"list --results {NOWHERE}", f"show --results {NOWHERE}", "list --nope", "compare x"],
    "conformance": [
        *("", "--nope", "budget=5", "method=", "method=nope", "method=5", "method=[1]", "method=full", "nope"),
        *("method=snapkv budget=x", f"method=snapkv budget={LONG}", "method=snapkv nope=1", "method=snapkv model=5"),
        *("method=snapkv budget=0", f"--config-dir={NOWHERE} method=snapkv", "method=snapkv protocol=null"),
    ],
    "reference": ["nope", "--nope", "--data"],
    "lm-eval": ["", "--nope", "--tasks x nope=1", "--tasks x model=5", "--tasks x method=null", "--tasks x --limit y"],
    "score": ["", "--nope", NOWHERE, "/dev/null"],
    "audit": ["--nope", "nope", "model=5", "eval=null", "budget=x"],
}


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in WRONG.items() for line in lines])
def test_a_mistake_ends_in_a_sentence_and_one_exit_code(command, line, capsys, monkeypatch):
    if command == "audit":  # which takes hours
        monkeypatch.setattr("evals.audit.__main__.measure", lambda *given: pytest.fail("the audit has begun"))
    assert main(["results", command, *line.split()]) == REFUSED
    said = capsys.readouterr()
    last = (said.err or said.out).splitlines()[-1]
    assert last
    assert last.isprintable()
    assert "Traceback" not in said.err


def test_commands_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert main([]) == main(["nope"]) == REFUSED
    assert "error: command=nope: " in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--results", "{}"], ["--results={}"]])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["results", "push-wandb", "logger.mode=offline"], ["paths.results={}", "logger.mode=offline"]),
        (["audit", "budget=64"], ["paths.results={}", "budget=64"]),
        (["calibrate", "model=x"], ["paths.results={}", "model=x"]),
    ],
)
def test_every_command_takes_the_results_folder_alike(words, expected, given, monkeypatch):
    taken = []
    monkeypatch.setattr("evals.cli.command", lambda name: taken.append)
    name = words[:-1]
    assert main([*name, *(word.format("a/tree") for word in given), words[-1]]) == 0
    assert taken == [[word.format("a/tree") for word in expected]]


MODULES = ("report", "results", "longbench.score", "ruler", "lm_eval", "conformance", "audit", "reference")


@pytest.mark.parametrize("module", ["evals", *(f"evals.{name}" for name in MODULES)])
def test_a_module_is_a_command(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [module, "--nope"])
    for name in ("outputs_take_any_text", "outputs_never_fail"):  # they replace the streams that this test reads
        monkeypatch.setattr(f"evals.cli.{name}", lambda: None)
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings(action="ignore"):
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == REFUSED
    assert capsys.readouterr().err.startswith(("error: ", "usage: "))


IN_TURN = """
import json, sys
from evals.cli import main
for words, unused in json.loads(sys.argv[1]):
    assert main(words) == 0
    assert not ({"torch", "transformers", *unused} & set(sys.modules)), words
"""


def test_results_are_read_without_torch(tmp_path):
    """In one process, which imports more with every command."""
    setting(tmp_path, cells([50.0, 100.0]), experiment="fig5_niah")
    commands = [
        (["results", "verify", f"--results={tmp_path}"], ["pandas", "matplotlib"]),
        (["report", str(tmp_path), f"--out={tmp_path}/page"], ["matplotlib"]),
        (["report", "experiment=fig5_niah", f"results={tmp_path}"], []),
    ]
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1" in done.stdout
    assert str(tmp_path) in done.stdout


@pytest.mark.parametrize("words", [["sent"], ["results=sent"], ["--results", "sent"], ["--results=sent"]])
def test_a_report_takes_the_results_folder_in_every_form(words, tmp_path, monkeypatch):
    setting(tmp_path / "sent")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words, "--out", "page"]) == 0
    assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.parametrize("words", [["a=b"], ["sent", "results=sent"], ["experiment="], ["sent", "columns=tasks"]])
def test_a_report_refuses_what_it_does_not_know(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
