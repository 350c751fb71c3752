"""A sweep on several devices: processes that each see one. Without a GPU they run on the CPU."""

import os
import re
import signal
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console

from compresskv import models
from evals import console
from evals.console import signals_as_interrupts
from evals.launch import worker
from evals.launch.devices import DevicePool, Devices, named, runner, visible
from evals.launch.groups import Group, sweep_jobs
from evals.running import loading
from tests.support.command import content, run, samples
from tests.support.jobs import composed, job
from tests.support.refusals import assert_refused, refused

ENV = {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
TWO = "hydra.launcher.devices=[0,1]"
GRID = ["eval.lengths=[200,300]", "eval.depths=2", "eval.max_new_tokens=4", "budget=64"]
SABOTAGE = ["method=snapkv", "method.scorer._target_=tests.launch.slurm.sabotage.scorer"]


@pytest.fixture
def tiny(checkpoint, tmp_path):
    """The overrides of a small sweep over these names of the tiny model, with a separate results folder."""

    def overrides(*names):
        for name in names:
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(checkpoint)
        paths = ",".join(str(tmp_path / name) for name in names)
        return [f"model.path={paths}", "model.dtype=float32", f"paths.results={tmp_path / 'out'}", *GRID]

    return overrides


def interrupt_when(condition, *signals):
    """Send this process `signals` in the background, once `condition` holds."""

    def interrupt():
        until = time.monotonic() + 120
        while not condition() and time.monotonic() < until:
            time.sleep(0.01)
        for sent in signals:
            signal.pthread_kill(threading.main_thread().ident, sent)
            time.sleep(0.3)

    threading.Thread(target=interrupt).start()


def test_an_interrupted_sweep_resumes_beside_a_process_that_is_killed(tiny, tmp_path):
    """What the processes of two devices leave, print and log, in two runs, the first of which is interrupted."""
    before = psutil.Process().children()
    interrupt_when(lambda: samples(tmp_path) >= 1, signal.SIGINT)
    interrupted = run("-m", *tiny("slow"), *SABOTAGE, TWO, env=ENV)
    console._Signals.received = False
    assert psutil.Process().children() == before
    assert interrupted.returncode == 128 + signal.SIGINT
    assert "Traceback" not in interrupted.stderr
    assert interrupted.stderr.splitlines()[-1].startswith("interrupted:")
    done = samples(tmp_path)
    assert 1 <= done < 4

    again = run("-m", *tiny("killed", "slow"), *SABOTAGE, TWO, env=ENV)
    assert f"4 samples, {done} of them from before" in again.stdout
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert "1 of 2" in again.stderr.splitlines()[-1]
    assert re.search(r"the process on device [01] ended without a result \(killed by SIGKILL\)", again.stdout)
    assert re.search(r"^\[[01] slow niah\] slow needle: (\d)/\1 prompts, .* left$", again.stderr, re.MULTILINE)
    assert len(re.findall(r"^\[[01] slow niah\] done$", again.stderr, re.MULTILINE)) == 1
    said = re.split("killed niah: the process on device [01]", again.stderr)[1]
    assert f"log: {tmp_path}/out/devices/" in said
    assert "killed niah] 1 settings" in said
    logs = [log.read_text() for log in (tmp_path / "out" / "devices").glob("*/*.log")]
    assert all(re.match(r"\[[01] \w+ niah\] 1 settings\n", log) for log in logs)
    assert any("95 % interval" in log for log in logs)

    spread = content(tmp_path)
    (tmp_path / "out").rename(tmp_path / "spread")
    alone = run(*tiny("slow"), *SABOTAGE, env=ENV)
    assert content(tmp_path) == spread
    assert alone.stdout.strip() in again.stdout


def test_a_mistake_is_a_sentence(tiny):
    done = run("-m", *tiny("one"), "hydra.launcher.devices=[0,0]", env=ENV)
    assert done.returncode == 1
    assert_refused(done, "hydra.launcher.devices")


@pytest.mark.parametrize("value", [[], 0, "0,1", {"0": 1}, [0, 0.5], [True], [[0]], [None], [1, "1"]])
def test_what_is_no_choice_of_devices_is_refused(value):
    with refused("hydra.launcher.devices"):
        named(value)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a number of CUDA devices and a value of CUDA_VISIBLE_DEVICES."""

    def with_devices(count, shown=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    return with_devices


def test_visible_devices(machine):
    machine(3)
    assert visible() == ["0", "1", "2"]
    machine(2, "GPU-5a, 7")
    assert visible() == ["GPU-5a", "7"]
    assert named(["GPU-5a", 7]) == ["GPU-5a", "7"]
    with refused("hydra.launcher.devices"):
        named([0])
    machine(0, "0,1")
    assert visible() == []


STUB = """
import json, os, signal, sys, time
def act(name):
    {}
for line in sys.stdin:
    code, entries = act(json.loads(line)["configs"][0]["model"]["name"])
    print(json.dumps(dict(code=code, entries=entries)), flush=True)
"""


def stub(tmp_path, act):
    """The command of a worker that runs `act`, a function body with the model's name, for every order."""
    script = tmp_path / "stub.py"
    script.write_text(STUB.format(act.strip().replace("\n", "\n    ")))
    return [sys.executable, str(script)]


@pytest.fixture
def start(machine, tmp_path, monkeypatch):
    """Runs a sweep on a machine with two devices; Python statements replace the harness.

    Returns False if the sweep would run in this process.
    """
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    machine(2)

    def launch_stub(*overrides, devices=None, act="return 3, None"):
        jobs = sweep_jobs([composed(f"paths.results={tmp_path}", "method=full", *given) for given in overrides])
        monkeypatch.setattr(worker, "COMMAND", stub(tmp_path, act))
        chosen = runner(devices, jobs)
        if not isinstance(chosen, Devices):
            return False
        signals_as_interrupts()
        chosen(jobs)
        return True

    yield launch_stub
    for name, handler in handlers.items():
        signal.signal(name, handler)
    console._Signals.received = False


ONE_MODEL, ANOTHER = ["model.name=one"], ["model.name=another"]


def test_what_cannot_be_spread_is_left_to_this_process(start, machine):
    assert not start(ONE_MODEL)
    assert not start(ONE_MODEL, [*ANOTHER, "model.device=map"])
    assert not start([*ONE_MODEL, "eval=efficiency"], [*ANOTHER, "eval=efficiency"])
    with refused("hydra.launcher.devices", value=[0, 1]):
        start(ONE_MODEL, [*ANOTHER, "model.device=cpu"], devices=[0, 1])
    machine(1)
    assert not start(ONE_MODEL, ANOTHER)


def test_what_can_be_spread_is(start):
    with refused(None) as caught:
        start(ONE_MODEL, ANOTHER)
    assert "2 of 2" in caught.value.why
    with refused(None) as caught:
        start(ONE_MODEL, devices=[1])
    assert "device 1" in str(caught.value)
    assert "exit code 3" in str(caught.value)


def test_a_process_that_fails_after_its_results_is_not_passed_over(start):
    with refused(None, names="/1.log"):
        start(ONE_MODEL, ANOTHER, act="return int(name == 'another'), []")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_processes(start, tmp_path, sent):
    interrupt_when(lambda: len(list(tmp_path.rglob("started-*"))) == 2, sent)
    before = psutil.Process().children()
    act = f"open(f'{tmp_path}/started-{{os.getpid()}}', 'w'); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        start(ONE_MODEL, ANOTHER, act=act)
    assert psutil.Process().children() == before


def pool(tmp_path, act, devices=("a", "b")):
    return DevicePool(devices, tmp_path, Console(stderr=True, soft_wrap=True), stub(tmp_path, act))


def group(name, unit=""):
    """A group of one job, of which a stub needs only the model's name."""
    return Group(name, "niah", unit, (SimpleNamespace(config={"model": {"name": name + unit}}),))


def test_one_process_a_device_at_a_time(tmp_path):
    act = f"""
device, events = os.environ["CUDA_VISIBLE_DEVICES"], open({str(tmp_path / "events")!r}, "a", buffering=1)
print("start", name, device, file=events)
time.sleep(0.1)
print("end", name, device, file=events)
return int(name == "2"), None
"""
    runs, codes = pool(tmp_path, act).run([group(str(n)) for n in range(6)])
    assert codes == [0, 0, 1, 0, 0, 0]
    assert [run.group.name for run in runs] == [f"{n} niah" for n in range(6)]
    events = [line.split() for line in (tmp_path / "events").read_text().splitlines()]
    for device in ("a", "b"):
        its = [(what, name) for what, name, where in events if where == device]
        assert len(its) >= 4
        assert its == [(what, name) for _, name in its[::2] for what in ("start", "end")]


def test_interrupted_twice_kills_what_does_not_end(tmp_path):
    act = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(name, 'w'); time.sleep(60)"
    started, processes = pool(tmp_path, act), []
    names = [str(tmp_path / name) for name in ("first", "second", "third")]

    def both_run():
        processes[:] = [worker.process for worker in started._workers.values()]
        return all(os.path.exists(name) for name in names[:2])

    interrupt_when(both_run, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        started.run([group(name) for name in names])
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "third").exists()


def test_a_process_goes_on_with_the_groups_of_its_model(tmp_path):
    act = f"""
with open({str(tmp_path / "taken")!r}, "a") as taken:
    print(os.environ["CUDA_VISIBLE_DEVICES"], os.getpid(), name, file=taken, flush=True)
time.sleep(0.3)
return 0, None
"""
    _, codes = pool(tmp_path, act).run([group(model, str(n)) for n, model in enumerate(["one", "two"] * 4)])
    assert codes == [0] * 8
    taken = [line.split() for line in (tmp_path / "taken").read_text().splitlines()]
    processes = {pid for _, pid, _ in taken}
    assert len(processes) == 2
    for pid in processes:
        assert len({name[:3] for _, of, name in taken if of == pid}) == 1


def test_a_killed_process_is_replaced_and_its_group_goes_on(tmp_path, capfd):
    act = f"""
with open({str(tmp_path / "taken")!r}, "a+") as taken:
    taken.seek(0)
    before = taken.read().split()
    print(name, file=taken, flush=True)
print("no line end", end="", file=sys.stderr)
if name == "always" or name == "once" and "once" not in before:
    os.kill(os.getpid(), signal.SIGKILL)
return 0, []
"""
    names = ["fine", "once", "always", "last"]
    runs, codes = pool(tmp_path, act, devices=["a"]).run([group(name) for name in names])
    assert codes == [0, 0, -signal.SIGKILL, 0]
    assert [run.entries for run in runs] == [[], [], None, []]
    assert (tmp_path / "taken").read_text().split() == ["fine", "once", "once", "always", "always", "last"]
    assert capfd.readouterr().err.count("killed by SIGKILL: resumes in another process") == 2
    assert runs[1].log.read_text().count("1 settings") == runs[1].log.read_text().count("no line end") == 2


def test_a_model_is_loaded_once_for_all_command_lines_of_a_process(monkeypatch, checkpoint):
    loaded = []
    monkeypatch.setattr(models, "load", lambda config: loaded.append(config.name) or object())
    monkeypatch.setattr(loading._Last, "kept", False)
    monkeypatch.setattr(loading._Last, "model", None)
    one, another = (job(f"model.path={checkpoint}", f"model.name={name}").model for name in ("one", "another"))
    loading.load(one)
    loading.load(one)
    assert loaded == ["one", "one"]
    loading.keep_last_model()
    first = loading.load(one)
    assert loading.load(one) is first
    assert loading.load(another) is not first
    assert loading.load(one) is not first
    assert loaded == ["one"] * 3 + ["another", "one"]
