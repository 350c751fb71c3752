"""Finished samples are never lost: torn lines, broken lines, names."""

import json

import pytest

from compresskv.errors import NonFiniteError
from evals.files import new_folder, safe_name, write_json, write_text
from evals.results.lines import decode, encode
from evals.results.store import SampleStore
from tests.support.refusals import refused
from tests.support.trees import line


def store_with(folder, *ids):
    store = SampleStore(folder)
    for id in ids:
        store.append(line(id))
    return store


def test_lines_survive_and_are_read_again(tmp_path):
    store = SampleStore(tmp_path / "a")
    store.append({"id": "1", "text": "Zürich 中文 \u2028", "half": "\ud83d", "pair": (1, 0.1)})
    store.append({"id": "2"})
    store.close()
    again = SampleStore(tmp_path / "a")
    assert list(again.lines) == ["1", "2"]
    assert again.lines == store.lines
    assert again.lines["1"]["text"] == "Zürich 中文 \u2028"
    assert again.lines["1"]["half"] == "\ud83d"
    again.close()


def test_a_torn_last_line_is_dropped(tmp_path):
    store = store_with(tmp_path / "a", "1")
    store.close()
    with store.path.open("a") as file:
        file.write('{"id": "2", "predi')
    again = SampleStore(tmp_path / "a")
    assert list(again.lines) == ["1"]
    again.append({"id": "3"})
    again.close()
    assert [json.loads(line)["id"] for line in store.path.read_text().splitlines()] == ["1", "3"]


@pytest.mark.parametrize(
    "broken",
    [
        "nonsense",
        "[]",
        "{}",
        '{"id": 3}',
        '{"id": "3", "score": NaN}',
        '{"id": "3", "n": ' + "1" * 5000 + "}",
        '{"id": "1"}',
        '{"id": "3", "score": 1, "checksum": "0123456789abcdef"}',
        "[" * 100_000,
        "",
        "\udcff\0",
    ],
    ids=["text", "list", "no id", "number", "nan", "digits", "twice", "changed", "deep", "empty", "bytes"],
)
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    store_with(tmp_path, "1").close()
    path = tmp_path / "samples.jsonl"
    path.write_text(path.read_text() + broken + '\n{"id": "4"}\n', errors="surrogateescape")
    before = path.read_bytes()
    for _ in range(2):  # the folder is let go of
        with refused(None):
            SampleStore(tmp_path)
    assert path.read_bytes() == before


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    store = store_with(tmp_path, "1")
    with refused("model.dtype", NonFiniteError):
        store.append({"id": "2", "score": float("nan")})
    store.append({"id": "2", "score": 1.0})
    store.close()
    assert list(SampleStore(tmp_path).lines) == ["1", "2"]


def test_a_sample_is_stored_once(tmp_path):
    store = store_with(tmp_path, "1")
    with pytest.raises(ValueError, match="sample 1"):
        store.append({"id": "1"})
    store.close()


def test_a_result_replaces_the_failure_of_its_sample(tmp_path):
    store = store_with(tmp_path, "1")
    store.append({"id": "2", "error": "out of memory"})
    assert list(store.failures) == ["2"]
    store.append({"id": "2"})
    assert (list(store.lines), store.failures) == (["1", "2"], {})
    store.check()
    store.close()


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        ({"prediction": "another"}, False),
        ({"kept": [64, 65]}, False),
        ({"novel": 1}, False),
        ({"batch": []}, True),
        ({"timing": {"batch_seconds": 2.0, "shared_by": 3}}, True),
    ],
    ids=str,
)
def test_equal_results_have_equal_checksums_and_every_field_has_one(edit, same):
    """How a result was computed changes its line, but not the checksum of the result."""
    stored, other = encode(line("1")), encode(line("1", **edit))
    assert not decode(stored).faults
    assert (json.loads(stored)["checksum"] == json.loads(other)["checksum"]) == same
    edited = json.dumps({**json.loads(stored), **edit}).encode() + b"\n"
    assert "changed after it was written" in decode(edited).faults[1]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (SampleStore, lambda path: write_json(path, {}), new_folder):
        with refused("paths.results"):
            make(tmp_path / "file" / "a")
    assert len({new_folder(tmp_path) for _ in range(3)}) == 3


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"score": 1})
    for content in ({"score": object()}, {"score": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, content)
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud83d")
    assert json.loads(path.read_text()) == {"score": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    store_with(tmp_path, "1").close()
    (tmp_path / ".0123456789abcdef.tmp").write_text("half")
    SampleStore(tmp_path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.jsonl"]


@pytest.mark.parametrize("name", ["SmolLM2-135M", "llama 3.1 (8B)", "模型", "a..b", "none-0123abcd", "~"])
def test_names_of_folders(name):
    assert safe_name("model.name", name) == name


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "a/b", "a\\b", "..", ".", ".hidden", "", " ", "a\0", "a\n", "x" * 256]
)
def test_names_that_would_leave_their_folder_are_refused(name):
    with refused("model.name"):
        safe_name("model.name", name)
