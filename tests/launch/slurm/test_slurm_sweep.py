"""Sweeps on a real SLURM, started by the user's command."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.own_method import write_package
from tests.support.refusals import assert_refused

pytestmark = pytest.mark.slurm

SABOTAGE = ["method=snapkv", "method.scorer._target_=tests.launch.slurm.sabotage.scorer"]
SLOW = ["model.name=slow", *SABOTAGE, "budget=64,96", "eval.depths=6"]


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)
    return found


def read(terminal):
    """New output of a terminal."""
    try:
        return os.read(terminal, 10_000).decode()
    except BlockingIOError:
        return ""


def summaries(harness):
    found = [json.loads(path.read_text()) for path in harness.results.rglob("summary.json")]
    return {(s["model"], s["method"], s["budget"]): s for s in found}


def test_two_groups_are_two_array_tasks(harness):
    before = set(harness.cluster.jobs())
    done = harness.run("model.name=one,two", "method=full,snapkv", "budget=64,96", "eval.depths=2")
    assert done.returncode == 0, done.stderr
    jobs = {id: state for id, state in harness.cluster.jobs().items() if id not in before}
    assert len({id.split("_")[0] for id in jobs}) == 1
    assert sorted(id.split("_")[1] for id in jobs) == ["0", "1"]
    assert set(jobs.values()) == {"COMPLETED"}
    settings = [("full", None), ("snapkv", 64), ("snapkv", 96)]
    assert set(summaries(harness)) == {(model, *setting) for model in ("one", "two") for setting in settings}
    assert "4 samples" in done.stdout
    assert "one · niah" in done.stdout
    assert "two · niah" in done.stdout
    assert done.stdout.count("figure:") == 4
    for log, model in zip(sorted(harness.results.glob("slurm/*/*.out")), ("one", "two"), strict=True):
        assert f"group of 4 settings, outcome: {harness.results}/" in log.read_text()
        assert f"{model} needle" in log.read_text()


def test_groups_of_a_model_share_an_array_task(harness):
    before = set(harness.cluster.jobs())
    together = "hydra.launcher.groups_per_task=2"
    done = harness.run("eval.name=niah,again", "method=snapkv", "budget=64", "eval.depths=2", together)
    assert done.returncode == 0, done.stderr
    assert len(set(harness.cluster.jobs()) - before) == 1
    assert "submitted 1 job:" in done.stderr
    assert len(list(harness.results.rglob("summary.json"))) == 2
    (log,) = harness.results.glob("slurm/*/*.out")
    assert log.read_text().count("group of 1 settings") == 2


@pytest.fixture(scope="module")
def disaster(sweep_harness):
    """A sweep of four groups: one runs, one raises, one is killed, and one is killed with all its processes."""
    models = "model.name=fine,raises,killed,wiped-out"
    return sweep_harness, sweep_harness.run(models, *SABOTAGE, "budget=64,96", "eval.depths=2")


def excerpt(disaster, model):
    """The driver's message about one group's failure: log path and last lines."""
    _, done = disaster
    (text,) = [part for part in done.stderr.split("───") if f"{model} niah: job " in part]
    return done.stderr.partition(text)[2].partition(" niah: job ")[0]


def test_failures_do_not_lose_the_others(disaster):
    harness, done = disaster
    assert done.returncode == 1
    assert set(summaries(harness)) == {("fine", "snapkv-sabotage", 64), ("fine", "snapkv-sabotage", 96)}
    assert "fine · niah" in done.stdout
    assert "6 of 8" in done.stderr.splitlines()[-1]
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if "SnapKV (sabotage) 64" in line}
    assert " ran " in rows["fine"]
    assert all(" failed " in rows[model] for model in ("raises", "killed", "wiped-out"))


def test_a_raising_job_is_reported_with_its_log_and_traceback(disaster):
    said = excerpt(disaster, "raises")
    log = Path(said.partition("log: ")[2].splitlines()[0])
    assert "sabotaged" in log.read_text()
    assert 'raise ValueError("sabotaged")' in said
    assert "ValueError: sabotaged" in said
    assert "ValueError: sabotaged" in disaster[1].stdout


@pytest.mark.parametrize("model", ["killed", "wiped-out"])
def test_a_killed_job_is_reported_with_its_log(disaster, model):
    said = excerpt(disaster, model)
    assert "log: " in said
    assert "kill" in said.lower()
    assert "FAILED" in disaster[1].stdout


@pytest.mark.parametrize("cause", ["notice", "preemption"])
def test_a_requeued_job_resumes(harness, cause):
    with harness.start(*SLOW, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        wait_for(lambda: harness.samples() >= 4)
        (job,) = harness.cluster.jobs("RUNNING")
        if cause == "notice":
            harness.cluster.run("scancel", "--signal=USR2", job)
        else:
            harness.cluster.run(
                "sbatch", "--partition=urgent", "--cpus-per-task=4", "--wrap=true", "--output=/dev/null"
            )
        out, error = driver.communicate(timeout=90)
    assert driver.returncode == 0, error
    assert "Restarts=1" in harness.cluster.run("scontrol", "show", "job", job)
    assert " resumed " in out
    for summary in summaries(harness).values():
        assert summary["n"] == 12
    for path in harness.results.rglob("samples.jsonl"):
        ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
        assert len(ids) == len(set(ids)) == 12


def test_ctrl_c_on_a_terminal_asks_and_cancels(harness):
    ours, theirs = pty.openpty()
    with harness.start(*SLOW, stdin=theirs, stderr=theirs, stdout=theirs) as driver:
        job = wait_for(lambda: list(harness.cluster.jobs("PENDING", "RUNNING")))[0]
        wait_for(lambda: harness.samples() >= 2)
        driver.send_signal(signal.SIGINT)
        os.set_blocking(ours, False)
        said = [read(ours)]
        wait_for(lambda: said.append(read(ours)) or "[y/N]" in "".join(said), 20)
        os.write(ours, b"y\n")
        assert driver.wait(30) == 128 + signal.SIGINT
        said.append(read(ours))
    assert "cancelled:" in "".join(said)
    assert "Traceback" not in "".join(said)
    wait_for(lambda: harness.cluster.jobs()[job] == "CANCELLED")
    assert harness.samples() >= 2


def test_ctrl_c_elsewhere_says_how_to_cancel_and_a_cancelled_job_is_reported(harness):
    with harness.start(*SLOW, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        job = wait_for(lambda: list(harness.cluster.jobs("PENDING", "RUNNING")))[0]
        driver.send_signal(signal.SIGINT)
        _, error = driver.communicate(timeout=30)
    assert driver.returncode == 128 + signal.SIGINT
    assert f"`scancel {job}`" in error
    assert harness.cluster.jobs()[job] in ("PENDING", "RUNNING")
    harness.cluster.clear()
    with harness.start(*SLOW, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        job = wait_for(lambda: list(harness.cluster.jobs("RUNNING")))[0]
        harness.cluster.run("scancel", job)
        _, error = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert f"error: job {job} ended without a result (CANCELLED" in error


def test_a_detached_sweep_returns_and_runs(harness):
    overrides = ["method=full,snapkv", "budget=64", "eval.depths=2"]
    done = harness.run(*overrides, "hydra.launcher.detach=true")
    assert done.returncode == 0, done.stderr
    assert "submitted 1 job: " in done.stderr
    job = done.stderr.partition("submitted 1 job: ")[2].partition(";")[0]
    assert f"`scancel {job}`" in done.stderr
    wait_for(lambda: harness.cluster.jobs()[job] == "COMPLETED")
    later = harness.run(*overrides, launcher="shared_prefill")
    assert later.returncode == 0, later.stderr
    assert "4 samples, 4 of them from before" in later.stdout


def test_what_slurm_refuses_is_a_sentence(harness):
    done = harness.run("method=full", "hydra.launcher.partition=nowhere")
    assert done.returncode == 1
    assert_refused(done, "hydra/launcher")
    assert "invalid partition specified: nowhere" in done.stderr  # in sbatch's own words
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_method_from_outside_the_tree(harness):
    """The jobs get the path that Python searches."""
    package = harness.folder / "package"
    conf = write_package(package)
    environment = {**harness.env, "PYTHONPATH": str(package)}
    line = harness.command("method=strided_halves", "budget=64", "eval.depths=2")
    line.insert(line.index("-m") + 1, f"--config-dir={conf}")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert {method for _, method, _ in summaries(harness)} == {"strided_halves"}
