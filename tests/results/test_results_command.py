"""`python -m evals.results`."""

import json
import os
import subprocess
import sys

import pytest

from evals.results.__main__ import main
from evals.results.store import write_json
from tests.support.command import ROOT
from tests.support.trees import folder, setting, unfinished, version_1


def call(results, *arguments):
    return main([*arguments, "--results", str(results)])


def test_list_show_and_verify(tmp_path, capsys):
    setting(tmp_path)
    assert call(tmp_path, "list") == 0
    listed = capsys.readouterr().out
    assert "snapkv/64-abcd1234" in listed
    assert "complete" in listed
    assert call(tmp_path, "show", "snapkv") == 0
    assert json.loads(capsys.readouterr().out)[0]["score"] == 50
    assert call(tmp_path, "verify") == 0
    assert "1 of 1 summaries match" in capsys.readouterr().out


def test_old_trees(tmp_path, capsys):
    place = version_1(tmp_path)
    assert call(tmp_path, "list") == 0
    assert "complete" in capsys.readouterr().out
    assert call(tmp_path, "verify") == 0
    assert "1 lines of older versions have no checksum" in capsys.readouterr().out
    write_json(place / "summary.json", {"score": 60.0, "interval": [40.0, 40.0], "samples": ["1"]})
    assert call(tmp_path, "verify") == 1
    assert "64-0123abcd: the summary says 60.0 for score, its samples 40.0" in capsys.readouterr().err


def test_a_broken_folder_stops_no_other(tmp_path, capsys):
    setting(tmp_path)
    broken = setting(tmp_path, method="tova").path / "samples.jsonl"
    broken.write_text(broken.read_text() + "nonsense\n")
    unfinished(tmp_path, model="calibrate")  # named like an evaluation
    said = {}
    for command, code in {"list": 0, "show": 0, "verify": 1}.items():
        assert call(tmp_path, command) == code
        said[command] = capsys.readouterr()
    assert "complete" in said["list"].out
    assert "samples.jsonl:3: not a sample's JSON line" in said["list"].out
    assert "calibrate/niah" in said["list"].out
    assert len(json.loads(said["show"].out)) == 3
    assert "tova/64-abcd1234: samples.jsonl:3" in said["verify"].err


def listed(capsys, *arguments):
    """The folders that `show` has, by their method."""
    assert main(["show", *arguments]) == 0
    return [part["folder"].split("/")[-2] for part in json.loads(capsys.readouterr().out)]


def test_a_folder_or_a_pattern_narrows_it_down(tmp_path, capsys, monkeypatch):
    for method in ("snapkv", "tova"):
        setting(tmp_path / "tree", method=method)
    place = setting(tmp_path / "results", method="cake").path
    monkeypatch.chdir(tmp_path)
    assert listed(capsys) == ["cake"]
    assert listed(capsys, "tree") == listed(capsys, "--results", "tree") == ["snapkv", "tova"]
    assert listed(capsys, "tree/runs/tiny") == ["snapkv", "tova"]
    assert listed(capsys, str(place)) == listed(capsys, str(place.parent)) == ["cake"]
    assert listed(capsys, "n?ah/*/tov[a]/64", "--results", "tree") == ["tova"]
    (tmp_path / "snap").mkdir()  # a folder of something else
    assert listed(capsys, "snap", "--results", "tree") == ["snapkv"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lst"], "lst"),
        ([], "command"),
        (["list", "--resluts", "x"], "--resluts"),
        (["list", "a", "b"], "b"),
        (["list", "nothing"], "nothing"),
        (["verify", "--results", "absent"], "absent"),
        (["show", "other", "--results", "absent"], "absent"),
        (["list", "--metric", "score"], "--metric"),
        (["compare", "--metric", "scores"], "--metric"),
        (["compare", "--metric", ""], "--metric"),
        (["list", "results/runs/empty"], "results/runs/empty"),
        (["list", "results", "--results", "other"], "--results"),
        (["list", "~nobody-at-all/x"], "~nobody-at-all"),
        (["list", "--results", "empty"], "empty"),
    ],
)
def test_each_bad_argument_is_a_sentence(tmp_path, capsys, monkeypatch, arguments, says):
    setting(tmp_path / "results")
    (tmp_path / "results" / "runs" / "empty").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert says in err


def test_a_reader_that_has_had_enough(tmp_path):
    setting(tmp_path)
    text = (folder(tmp_path) / "samples.jsonl").read_text()
    for number in range(200):
        place = folder(tmp_path, f"m{number}")
        place.mkdir(parents=True)
        (place / "samples.jsonl").write_text(text)
    program = [sys.executable, "-m", "evals.results", "show", "--results", str(tmp_path)]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_a_terminal_of_few_characters_is_written_to(tmp_path):
    setting(tmp_path, [0.0, 100.0])
    setting(tmp_path, [50.0, 100.0], method="été")
    line = [sys.executable, "-m", "evals.results", "compare", "--results", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii")
