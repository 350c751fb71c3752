"""The command line: what it answers, what it leaves behind, how it resumes, what it says to a mistake."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.support.command import ROOT, arguments, content, folders, kill_and_resume, run, run_process
from tests.support.equality import assert_sharing_changes_nothing
from tests.support.refusals import assert_refused

GRID = ["eval.lengths=[200,300]", "eval.depths=3", "eval.max_new_tokens=8"]


@pytest.fixture
def tiny(checkpoint, tmp_path):
    """Overrides that run the tiny model into a results folder of its own."""
    return [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"paths.results={tmp_path / 'out'}"]


def test_help_and_cfg_answer_at_once_and_without_torch():
    for flag, shown in ((["--help"], "budget=256"), (["--cfg", "job"], "budget: 256")):
        done = subprocess.run(
            [arguments()[0], "-X", "importtime", *arguments()[1:], *flag], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0
        assert shown in done.stdout
        assert "torch" not in done.stderr.replace("pytorch", "")


@pytest.mark.parametrize("group", ["model", "method", "method/allocator", "eval", "protocol", "logger", "experiment"])
def test_every_option_composes(group):
    for path in sorted((ROOT / "conf" / group).glob("[!_]*.yaml")):
        text = path.read_text()
        assert "python run.py" in "\n".join(text.splitlines()[:2]), f"{path.name} does not say how to run it"
        done = run(f"{group}={path.stem}", "--cfg", "job")
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["budget"] == 256


def test_a_run_and_what_it_leaves(tiny, tmp_path):
    done = run_process("method=snapkv", "budget=64", *GRID, *tiny)
    assert done.returncode == 0, done.stderr
    assert "SnapKV 64" in done.stdout
    (folder,) = folders(tmp_path)
    parts = folder.relative_to(tmp_path / "out" / "runs").parts
    assert parts[:-1] == ("tiny-llama", "niah", "needle", "corrected", "snapkv")
    assert parts[-1].startswith("64-")
    assert (folder / "config.yaml").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert {"model", "eval", "task", "protocol", "method", "budget", "score", "n", "interval"} <= set(summary)
    assert (summary["n"], summary["budget"], summary["realised_budget"]) == (6, 64, 64)
    assert summary["cache_bytes"] == 2 * 64 * 3 * 2 * 8 * 4
    assert {"git_commit", "versions", "hardware"} <= set(summary["environment"])
    figures = list((tmp_path / "out" / "figures").iterdir())
    assert sorted(figure.suffix for figure in figures) == [".png", ".svg"]


def test_a_wider_run_extends_a_narrower_one_and_resumes(tiny, tmp_path):
    run("method=snapkv", "budget=64", "eval.lengths=[200]", "eval.depths=3", "eval.max_new_tokens=8", *tiny)
    (folder,) = folders(tmp_path)
    before = (folder / "samples.jsonl").read_text()
    run("method=snapkv", "budget=64", *GRID, *tiny)
    assert folders(tmp_path) == [folder]
    after = (folder / "samples.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 6
    assert json.loads((folder / "summary.json").read_text())["n"] == 6


def test_a_sweep_shares_prefills_and_equals_separate_runs(tiny, tmp_path):
    sweep = ["method=full,streaming_llm,snapkv,pyramidkv,adakv,cake", "budget=64,128"]
    done = run("-m", *sweep, *GRID, *tiny)
    assert done.returncode == 0, done.stderr
    together = content(tmp_path)
    assert len(together) == 11
    assert len([key for key in together if "/full/none-" in key]) == 1
    assert done.stdout.count("figure:") == 2
    assert not (ROOT / "multirun").exists()
    (tmp_path / "out").rename(tmp_path / "together")
    for method in ("full", "snapkv", "cake"):
        run(f"method={method}", "budget=64", *GRID, *tiny)
    for key, (lines, order, summary) in content(tmp_path).items():
        shared_lines, shared_order, shared_summary = together[key]
        for line in (*lines.values(), *shared_lines.values()):
            line.pop("batch")
        assert (lines, order, summary) == (shared_lines, shared_order, shared_summary)


def test_sharing_changes_nothing_for_any_method(tiny, tmp_path, calibration_file, monkeypatch):
    overrides = [*tiny[:3], "eval.lengths=[300]", "eval.depths=2", "eval.max_new_tokens=6"]
    assert_sharing_changes_nothing([*overrides, f"calibration={calibration_file}"], tmp_path, monkeypatch)


def test_a_killed_sweep_resumes_to_the_same_files(tiny, tmp_path):
    command = ["-m", "method=full,snapkv", "budget=64,96", *GRID, "eval.depths=5", *tiny]
    killed = kill_and_resume(command, tmp_path, seed=8)
    (tmp_path / "out").rename(tmp_path / "killed")
    assert run(*command).returncode == 0
    assert killed == content(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["model=gpt-5"], "model"),
        (["model.path=nobody/nothing"], "model.path"),
        (["method=snapkv", "budget=8"], "budget"),
        (["method=snapkv", "budget=0"], "budget"),
        (["budget=many"], "budget"),
        (["eval.lengths=[100000]"], "eval.lengths"),
        (["eval.lengths=4"], "eval.lengths"),
        (["eval.depths=x"], "eval.depths"),
        (["observation.kernel=4", "method=snapkv"], "observation.kernel"),
        (["observation.pooling=sum", "method=snapkv"], "observation.pooling"),
        (["method=compresskv"], "calibration"),
        (["calibration=/nowhere.json", "method=compresskv"], "calibration"),
        (["model.dtype=int4"], "model.dtype"),
        (["model.device=gpu"], "model.device"),
        (["prefill_chunk=0"], "prefill_chunk"),
        (["protocol.score_dtype=bfloat16"], "protocol.score_dtype"),
        (["model.typo=1"], "model.typo"),
        (["-m", "--cfg=job"], "--multirun and --cfg"),
        (["--resolve"], "--resolve"),
        (["model.chat_template_kwargs.x=1"], "model.chat_template_kwargs.x"),
        (["+model.chat_template_kwargs.x=nan"], "model.chat_template_kwargs.x"),
        (["eval.needle='\udcff'"], "eval.needle"),
        (["-m", "+hydra.launcher.device=[0]"], "hydra.launcher.device"),
        (["-m", "hydra.sweeper.params=5"], "hydra.sweeper.params"),
        (["eval.haystack=/nowhere"], "eval.haystack"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(tiny, overrides, field):
    flags = [word for word in overrides if word.startswith("-")]
    assert_refused(run(*flags, "method=full", *tiny, *overrides[len(flags) :]), field)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["model.typo=1"], "model.typo"),  # refused by Hydra
        (["budget=0"], "budget"),  # before torch is imported
        (["-m", "calibration=/nowhere.json"], "calibration"),  # once the model is there
    ],
)
def test_a_mistake_ends_the_process_with_a_sentence(tiny, overrides, field):
    assert_refused(run_process(*overrides, "method=compresskv", *tiny), field)


def test_results_that_cannot_be_written_are_a_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("method=full", *GRID, *tiny, f"paths.results={tmp_path / 'file'}")
    assert_refused(done, "paths.results")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_a_sentence(tiny, tmp_path, sent):
    command = arguments("method=snapkv", "budget=64", "eval.lengths=[2000,3000]", "eval.depths=60", *tiny)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any((tmp_path / "out").rglob("samples.jsonl")):
        time.sleep(0.01)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "Traceback" not in error
    assert error.startswith("interrupted:")


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


def signalled_at(moment, sent, command):
    """Assert that a run ends in one sentence when the signal comes after `moment` seconds."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    running = process.poll() is None
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    if running:
        early = not error and process.returncode == -sent  # the interpreter itself was still starting
        assert early or process.returncode == 128 + sent, f"after {moment} s"
        assert "Traceback" not in error, f"after {moment} s"
        assert early or error.splitlines()[-1].startswith("interrupted: "), f"after {moment} s"


@pytest.mark.parametrize(("moment", "sent"), [(0.4, signal.SIGINT), (1.2, signal.SIGTERM)])
def test_a_signal_at_start_up_is_answered(tiny, moment, sent):
    signalled_at(moment, sent, arguments("method=snapkv", "budget=64", "eval.lengths=[3000]", "eval.depths=60", *tiny))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [round(0.05 + 0.2 * step, 2) for step in range(17)])
def test_a_signal_at_any_moment_of_start_up_is_answered(tiny, moment, sent):
    test_a_signal_at_start_up_is_answered(tiny, moment, sent)


def test_a_failing_setting_does_not_take_the_others_along(tiny, tmp_path):
    done = run("-m", "method=snapkv,compresskv,cake", "budget=64", *GRID, *tiny)  # compresskv lacks a calibration
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "1 of 3" in done.stderr.splitlines()[-1]
    finished = {folder.parent.name for folder in folders(tmp_path) if (folder / "summary.json").exists()}
    assert finished == {"snapkv", "cake"}
