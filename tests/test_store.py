"""Nothing finished is ever lost: torn lines, locks, refusals of the disk."""

import json

import pytest

from compresskv.errors import UserError
from evals.results.store import SampleStore, read_lines, write_json
from evals.results.summary import mean_and_interval


def test_lines_survive_and_are_read_again(tmp_path):
    store = SampleStore(tmp_path / "a")
    store.append({"id": "1", "text": "Zürich 中文 \u2028"})
    store.append({"id": "2"})
    store.close()
    again = SampleStore(tmp_path / "a")
    assert list(again.lines) == ["1", "2"]
    assert again.lines["1"]["text"] == "Zürich 中文 \u2028"
    again.close()


def test_a_torn_last_line_is_dropped(tmp_path):
    store = SampleStore(tmp_path / "a")
    store.append({"id": "1"})
    store.close()
    with store.path.open("a") as file:
        file.write('{"id": "2", "predi')
    again = SampleStore(tmp_path / "a")
    assert list(again.lines) == ["1"]
    again.append({"id": "3"})
    again.close()
    assert [json.loads(line)["id"] for line in store.path.read_text().splitlines()] == ["1", "3"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"id": "1"}\nnonsense\n{"id": "3"}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl:2"):
        read_lines(path)


def test_two_processes_cannot_share_a_folder(tmp_path):
    store = SampleStore(tmp_path / "a")
    with pytest.raises(UserError, match="in use by another process"):
        SampleStore(tmp_path / "a")
    store.close()
    SampleStore(tmp_path / "a").close()


def test_a_full_disk_is_one_sentence_and_keeps_what_is_done(tmp_path):
    store = SampleStore(tmp_path / "a")
    store.append({"id": "1"})
    real, store._file = store._file, open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match="No space left on device"):
        store.append({"id": "2"})
    assert list(store.lines) == ["1"]
    real.close()
    store._lock.close()
    assert [line["id"] for line in read_lines(store.path)] == ["1"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths\.results"):
        SampleStore(tmp_path / "file" / "a")
    with pytest.raises(UserError, match=r"paths\.results"):
        write_json(tmp_path / "file" / "a.json", {})


def test_summaries_are_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"score": 1})
    with pytest.raises(TypeError):
        write_json(path, {"score": object()})
    assert json.loads(path.read_text()) == {"score": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_intervals():
    assert mean_and_interval([50.0]) == (50.0, [50.0, 50.0])
    mean, (low, high) = mean_and_interval([0.0, 100.0] * 50)
    assert mean == 50
    assert 35 < low < 45
    assert 55 < high < 65
    assert mean_and_interval([1.0, 2.0, 4.0]) == mean_and_interval([1.0, 2.0, 4.0])
