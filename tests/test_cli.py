"""The command line: what it answers, what it leaves behind, how it resumes, what it says to a mistake."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support.command import ROOT, arguments, content, folders, kill_and_resume, run, run_process, sent_to_child
from tests.support.equality import assert_sharing_changes_nothing
from tests.support.jobs import composed
from tests.support.refusals import assert_refused

GRID = ["eval.lengths=[200,300]", "eval.depths=3", "eval.max_new_tokens=8"]


def test_every_option_says_how_to_run_it():
    """That each composes is tested with its comments, and that experiments do at every size with the artefacts."""
    for group in ("model", "method", "method/allocator", "eval", "protocol", "logger", "experiment"):
        for path in sorted((ROOT / "conf" / group).glob("[!_]*.yaml")):
            begins = "\n".join(path.read_text().splitlines()[:2])
            assert "python run.py" in begins, f"{path.name} does not say how to run it"
    assert composed("experiment=demo")["budget"] == 256


def test_a_run_and_what_it_leaves_and_a_wider_one_extends_it(tiny, tmp_path):
    command = ["method=snapkv", "budget=64", *GRID, *tiny]
    done = run_process(*command, "eval.lengths=[200]")
    assert done.returncode == 0, done.stderr
    assert "SnapKV 64" in done.stdout
    (folder,) = folders(tmp_path)
    parts = folder.relative_to(tmp_path / "out" / "runs").parts
    assert parts[:-1] == ("tiny-llama", "niah", "needle", "corrected", "snapkv")
    assert parts[-1].startswith("64-")
    assert (folder / "config.yaml").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert {"model", "eval", "task", "protocol", "method", "budget", "score", "n", "interval"} <= set(summary)
    assert (summary["n"], summary["budget"], summary["realised_budget"]) == (3, 64, 64)
    assert summary["cache_bytes"] == 2 * 64 * 3 * 2 * 8 * 4
    assert {"git_commit", "versions", "hardware"} <= set(summary["environment"])
    figures = list((tmp_path / "out" / "figures").iterdir())
    assert sorted(figure.suffix for figure in figures) == [".png", ".svg"]
    before = (folder / "samples.jsonl").read_text()
    run(*command)
    assert folders(tmp_path) == [folder]
    after = (folder / "samples.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == json.loads((folder / "summary.json").read_text())["n"] == 6


def test_sharing_changes_nothing_for_any_method(tiny, tmp_path, calibration_file, monkeypatch):
    overrides = [*tiny[:3], "eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4"]
    assert_sharing_changes_nothing([*overrides, f"calibration={calibration_file}"], tmp_path, monkeypatch)


def test_a_killed_sweep_resumes_to_the_same_files(tiny, tmp_path):
    command = ["-m", "method=full,snapkv", "budget=64,96", *GRID, "eval.depths=5", *tiny]
    killed = kill_and_resume(command, tmp_path, after=8)
    (tmp_path / "out").rename(tmp_path / "killed")
    done = run(*command, figures=True)
    assert done.returncode == 0, done.stderr
    assert killed == content(tmp_path)
    assert len(killed) == 3
    assert len([key for key in killed if "/full/none-" in key]) == 1
    assert done.stdout.count("figure:") == 2
    assert not (ROOT / "multirun").exists()


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["model=gpt-5"], "model"),  # refused by Hydra
        (["model.typo=1"], "model.typo"),
        (["budget=many"], "budget"),  # before torch is imported
        (["eval.haystack=/nowhere"], "eval.haystack"),
        (["model.path=nobody/nothing"], "model.path"),  # once it is
        (["eval.lengths=[100000]"], "eval.lengths"),  # once the model is there
        (["method=compresskv"], "calibration"),
        (["-m", "calibration=/nowhere.json", "method=compresskv"], "calibration"),
        (["-m", "--cfg=job"], "--multirun and --cfg"),
        (["--resolve"], "--resolve"),
        (["model.chat_template_kwargs.x=1"], "model.chat_template_kwargs.x"),
        (["+model.chat_template_kwargs.x=nan"], "model.chat_template_kwargs.x"),
        (["eval.needle='\udcff'"], "eval.needle"),
        (["-m", "+hydra.launcher.device=[0]"], "hydra.launcher.device"),
        (["-m", "hydra.sweeper.params=5"], "hydra.sweeper.params"),
        (["paths.results=/dev/null"], "paths.results"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(tiny, overrides, field):
    flags = [word for word in overrides if word.startswith("-")]
    assert_refused(run(*flags, "method=full", *GRID, *tiny, *overrides[len(flags) :]), field)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_a_sentence(tiny, tmp_path, sent):
    command = ["method=snapkv", "budget=64", "eval.lengths=[2000,3000]", "eval.depths=60", *tiny]
    code, said = sent_to_child(sent, command, tmp_path, after=1)
    assert code == 128 + sent
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted:")


OUTPUTS = """
import sys
from evals.command import open_standard_descriptors
from evals.console import outputs_never_fail
from rich.console import Console
open_standard_descriptors()
outputs_never_fail()
for standard in (False, True):
    Console(stderr=standard).print("x" * 100_000, highlight=False)
sys.stdout.write("\\udcff\\n")
with open(sys.argv[1], "w") as file:
    print(file.fileno(), file=file)
sys.exit("error: nobody reads this")
"""


@pytest.mark.parametrize("end", [">&- 2>&-", ">/dev/full 2>&1", "2>&1 | true"])
def test_printing_raises_nothing_and_no_file_is_taken_for_stderr(tmp_path, end):
    shell = f'set -o pipefail; "$0" -c "$1" "$2" {end}'
    file = tmp_path / "descriptor"
    done = subprocess.run(["bash", "-c", shell, sys.executable, OUTPUTS, file], capture_output=True, cwd=ROOT)
    assert done.returncode == 1
    assert int(file.read_text()) > 2
    assert done.stderr + done.stdout == b""


@pytest.mark.slow
def test_output_that_nobody_takes_costs_no_sample(tiny, tmp_path):
    command = arguments("method=snapkv", "budget=64", *GRID, *tiny)
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$0" "$@" 2>&- | true', *command], cwd=ROOT)
    assert done.returncode == 0
    (folder,) = folders(tmp_path)
    assert json.loads((folder / "summary.json").read_text())["n"] == 6


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        *((0.4, signal.SIGINT), (1.2, signal.SIGTERM)),
        *(
            pytest.param(round(0.05 + 0.2 * step, 2), sent, marks=pytest.mark.slow)
            for step in range(17)
            for sent in (signal.SIGINT, signal.SIGTERM)
        ),
    ],
)
def test_a_signal_at_start_up_is_answered(tiny, moment, sent):
    command = arguments("method=snapkv", "budget=64", "eval.lengths=[3000]", "eval.depths=60", *tiny)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    running = process.poll() is None
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    if running:
        early = not error and process.returncode == -sent  # the interpreter itself was still starting
        assert early or process.returncode == 128 + sent
        assert "Traceback" not in error
        assert early or error.splitlines()[-1].startswith("interrupted: ")
