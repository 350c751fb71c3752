"""`python -m evals.results`."""

import json

import pytest

from evals.results.__main__ import main
from evals.results.store import SampleStore, write_json
from evals.results.summary import mean_and_interval


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "runs" / "model" / "niah" / "needle" / "corrected" / "snapkv" / "64-abc"
    store = SampleStore(folder)
    for id, score in (("1", 0.0), ("2", 100.0)):
        store.append({"id": id, "score": score})
    store.close()
    mean, interval = mean_and_interval([0.0, 100.0])
    write_json(folder / "summary.json", {"score": mean, "interval": interval, "samples": ["1", "2"]})
    return folder


def call(results, *arguments):
    return main([*arguments, "--results", str(results.parents[5].parent)])


def test_list_show_and_verify(results, capsys):
    assert call(results, "list") == 0
    shown = capsys.readouterr().out
    assert "snapkv/64-abc" in shown
    assert "complete" in shown
    assert call(results, "show", "snapkv") == 0
    assert json.loads(capsys.readouterr().out)[0]["score"] == 50
    assert call(results, "verify") == 0


def test_a_wrong_summary_is_named(results, capsys):
    write_json(results / "summary.json", {"score": 60.0, "interval": [0, 100], "samples": ["1", "2"]})
    assert call(results, "verify") == 1
    assert "the summary says 60.0" in capsys.readouterr().err


def test_states(results, capsys):
    store = SampleStore(results)
    call(results, "list")
    assert "running" in capsys.readouterr().out
    store.append({"id": "3", "score": 1.0})
    store.close()
    call(results, "list")
    assert "stale: 1 samples" in capsys.readouterr().out
    with (results / "samples.jsonl").open("a") as file:
        file.write('{"id": "4", "sc')
    call(results, "list")
    assert "stale: 1 samples" in capsys.readouterr().out
    (results / "summary.json").unlink()
    assert call(results, "verify") == 1


def test_nothing_there(tmp_path, capsys):
    assert main(["list", "--results", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err
