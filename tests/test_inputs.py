"""Files, pipes and devices as data: read once, within bounds, and hashed as they were read."""

import json
import os
import threading

import pytest

from compresskv import calibration, inputs
from compresskv.errors import UserError
from compresskv.inputs import read_once
from compresskv.protocol import EvaluationProtocol
from evals.haystack import essays
from evals.jsonl.evaluation import JsonlTask
from evals.longbench import score
from evals.longbench.data import open_source
from evals.report.__main__ import main as report
from tests.support.command import run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused


def pipe(path, content: bytes):
    """A pipe that another thread writes `content` to, once."""
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_bytes(content), daemon=True).start()
    return path


def records(*answers) -> bytes:
    lines = [{"prompt": "Where?", "answers": [answer], "metric": "qa_f1", "max_new_tokens": 3} for answer in answers]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def task(path, model):
    return JsonlTask(job("eval=jsonl", f"eval.data={path}").eval, model, EvaluationProtocol())


def test_what_was_read_is_what_is_hashed(tmp_path, default_model):
    """Two pipes are two data sets; and a pipe, a file, and a file edited after it was read, one."""
    first, second = (pipe(tmp_path / name, records(name)) for name in ("one", "two"))
    assert read_once(first, "eval.data") == read_once(first, "eval.data") == records("one")
    tasks = [task(path, default_model) for path in (first, second)]
    assert [len(of_pipe.sample_ids) for of_pipe in tasks] == [1, 1]
    assert tasks[0].identity != tasks[1].identity
    (tmp_path / "file").write_bytes(records("one"))
    of_file = task(tmp_path / "file", default_model)
    assert of_file.sample_ids == ["0"]
    (tmp_path / "file").write_bytes(records("three"))
    assert of_file.identity == tasks[0].identity
    assert of_file.sample("0").reference == "one"


@pytest.mark.parametrize("kind", ["data", "haystack", "calibration", "archive"])
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/urandom", "fifo"])
def test_devices_and_silent_pipes_are_refused_at_once(kind, name, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SILENCE", 0.05)
    if name == "fifo":
        os.mkfifo(name := tmp_path / "fifo")
    read = {
        "data": lambda: job("eval=jsonl", f"eval.data={name}").eval.check(),
        "haystack": lambda: essays(str(name)),
        "calibration": lambda: calibration.choose("tiny", str(name), EvaluationProtocol()),
        "archive": lambda: open_source(name, cache=tmp_path / "cache"),
    }
    field = {"haystack": "eval.haystack", "calibration": "calibration"}.get(kind, "eval.data")
    with refused(field, value=name):
        read[kind]()


def test_endless_pipes_and_large_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LARGEST", 1000)
    path = pipe(tmp_path / "pipe", b"x" * 1001)
    (tmp_path / "file").write_bytes(b"x" * 1001)
    for _ in range(2):  # what is left in the pipe is not the data
        with pytest.raises(UserError):
            read_once(path, "eval.data")
        with pytest.raises(UserError):
            read_once(tmp_path / "file", "eval.data")


def test_files_among_others_are_read_so_too(tmp_path, monkeypatch):
    """A pipe in a folder of texts or of predictions, and a gigantic line."""
    monkeypatch.setattr(inputs, "SILENCE", 0.05)
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "qasper.jsonl")
    with pytest.raises(UserError):
        essays(str(tmp_path))
    with pytest.raises(UserError):
        score.score_folder(tmp_path)
    monkeypatch.setattr("evals.json_lines.LARGEST_LINE", 100)
    (tmp_path / "long.jsonl").write_bytes(records("x" * 100))
    with refused(None, where=f"{tmp_path / 'long.jsonl'}, line 1"):
        job("eval=jsonl", f"eval.data={tmp_path / 'long.jsonl'}").eval.check()


def test_data_is_refused_before_a_model_is_loaded(tmp_path):
    """The model does not exist either, but the error is about the data."""
    path = tmp_path / "task.jsonl"
    path.write_bytes(records("fine", "-"))
    done = run("eval=jsonl", f"eval.data={path}", f"model.path={tmp_path}/nowhere.gguf", f"paths.results={tmp_path}")
    assert done.returncode != 0
    assert_refused(done, "answers")
    assert "nowhere" not in done.stderr


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("eval.data", ["eval=jsonl"]),
        ("eval.data", ["eval=longbench"]),
        ("eval.output", ["eval=calibrate"]),
        ("eval.haystack", []),
        ("paths.results", []),
        ("model.path", []),
        ("calibration", ["method=compresskv"]),
    ],
)
def test_the_home_of_somebody_unknown_is_refused(tmp_path, field, overrides):
    done = run(f"paths.results={tmp_path}", *overrides, f"{field}='~nobody.of.this.name/x'")
    assert done.returncode != 0
    assert_refused(done, field)


@pytest.mark.parametrize("command", ["~nobody.here/x --out page.html", "experiment=fig5_niah results=~nobody.here/x"])
def test_reports_refuse_it_too(command):
    with refused("results", value="~nobody.here/x"):
        report(command.split())
