"""Data sources, archives, strict records, and the check against the official rows."""

import hashlib
import json
import zipfile
from functools import partial

import pytest

from evals.compose import job_from
from evals.longbench import archive, official
from evals.longbench.aggregate import task_score
from evals.longbench.data import load_task, open_source
from evals.longbench.metrics import SampleScore
from evals.longbench.records import Row
from evals.longbench.tasks import ALL, ENGLISH, TASKS
from tests.support.jobs import composed
from tests.support.refusals import refused

QASPER = TASKS["qasper"]


def row(**changes):
    fields = {"input": "Where?", "context": "The cat sat.", "answers": ["on the mat"], "all_classes": None, "length": 3}
    return fields | changes


def jsonl(*rows):
    return "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in rows)


def folder_of(path, content, name="qasper.jsonl"):
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(content, encoding="utf-8")
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, text in members.items():
            content.writestr(name, text)
    return path


def test_records_carry_the_official_row_or_else_the_line_number(tmp_path, records):
    for name, record in records.items():
        folder = folder_of(tmp_path, jsonl(row(**{**vars(record), "_lb_index": record.row})), f"{name}.jsonl")
        assert load_task(folder, TASKS[name]) == [record]
    folder_of(tmp_path, jsonl(row(), row(answers=["猫", "cat"], language="en", _id="x"), row()))
    loaded = load_task(folder, QASPER, limit=2)
    assert loaded == [
        Row("Where?", "The cat sat.", ("on the mat",), None, 3, row=0),
        Row("Where?", "The cat sat.", ("猫", "cat"), None, 3, row=1),
    ]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('{"input": "Wh', None, ...),
        ('"text"', None, "text"),
        (row(length=-1), "length", -1),
        (row(length=True), "length", True),
        (row(answers=[]), "answers", ()),
        (row(answers=[1]), "answers[0]", 1),
        (row(all_classes="a"), "all_classes", "a"),
        (row(context=None), "context", None),
        (row(_lb_index="1"), "_lb_index", "1"),
        (row(_lb_index=0), "_lb_index", 0),
        ("\n" + json.dumps(row()), None, ...),
        (json.dumps(row()).replace("cat", "\\ud800"), None, ...),
        (json.dumps(row(answers=["a"])).replace('"a"', r'"\udc00\ud83d"'), None, ...),
        (json.dumps(row()).replace("3", "9" * 5000), None, ...),
        (row(length=10**30), "length", 10**30),
        (row(length=10**4000), "length", 10**4000),
        *(({key: value for key, value in row().items() if key != missing}, missing, ...) for missing in row()),
    ],
)
def test_bad_line(tmp_path, line, field, value):
    folder = folder_of(tmp_path, jsonl(row(), line))
    with refused(field, value=value, where=f"{tmp_path}/qasper.jsonl, line 2"):
        load_task(folder, QASPER)


@pytest.mark.parametrize("end", ["", "\n\n", "\r\n \r\n"])
def test_a_byte_order_mark_and_blank_lines_at_the_end_are_no_data(end, tmp_path):
    content = b"\xef\xbb\xbf" + jsonl(row(), row(input="Who?")).encode() + end.encode()
    (tmp_path / "qasper.jsonl").write_bytes(content)
    assert [record.input for record in load_task(tmp_path, QASPER)] == ["Where?", "Who?"]


def test_a_pair_of_escapes_is_one_character(tmp_path):
    folder = folder_of(tmp_path, json.dumps(row(input="😀")))
    assert "\\ud83d" in (folder / "qasper.jsonl").read_text()
    assert load_task(folder, QASPER)[0].input == "😀"


def test_notes_of_other_programs_are_no_data(tmp_path):
    (tmp_path / "._qasper.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".qasper.jsonl").write_text("{}")
    with refused("eval.data", value=tmp_path):
        open_source(tmp_path)
    folder_of(tmp_path / "data", jsonl(row()))
    assert open_source(tmp_path) == tmp_path / "data"
    members = {"data/qasper.jsonl": jsonl(row()), "__MACOSX/data/._qasper.jsonl": "no", "data/.x.jsonl": "no"}
    folder = open_source(zip_of(tmp_path / "any.zip", members), cache=tmp_path / "cache")
    assert [file.name for file in folder.iterdir()] == ["qasper.jsonl"]


def test_bad_files(tmp_path):
    with refused("eval.tasks", value="qasper"):
        load_task(tmp_path, QASPER)
    for empty in ("", "\n \n"):
        folder_of(tmp_path, empty)
        with refused(None, value=tmp_path / "qasper.jsonl"):
            load_task(tmp_path, QASPER)
    folder_of(tmp_path, jsonl(row()), "trec.jsonl")
    with refused("all_classes", value=None, where=f"{tmp_path / 'trec.jsonl'}, line 1"):
        load_task(tmp_path, TASKS["trec"])
    with refused("eval.limit", value=0):
        load_task(tmp_path, QASPER, limit=0)


def test_directories_of_every_shape(tmp_path):
    content = jsonl(row())
    flat = folder_of(tmp_path / "flat", content)
    assert open_source(flat) == flat
    assert open_source(str(folder_of(tmp_path / "hub" / "data", content).parent)) == tmp_path / "hub" / "data"
    (tmp_path / "repository").mkdir()
    zip_of(tmp_path / "repository" / "data.zip", {"data/qasper.jsonl": content})
    unpacked = open_source(tmp_path / "repository", cache=tmp_path / "cache")
    assert load_task(unpacked, QASPER) == load_task(flat, QASPER)
    with refused("eval.data"):
        open_source(tmp_path)
    with refused("eval.data"):
        open_source(tmp_path / "nowhere")


def test_local_zip_is_unpacked_once_and_checked(tmp_path):
    path = zip_of(tmp_path / "any.zip", {"data/": "", "data/qasper.jsonl": jsonl(row()), "data/README.md": "no"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = open_source(path, cache=tmp_path / "cache", sha256=digest)
    assert folder == tmp_path / "cache" / digest
    assert [file.name for file in folder.iterdir()] == ["qasper.jsonl"]
    (folder / "marker").touch()
    assert (open_source(path, cache=tmp_path / "cache") / "marker").exists()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [digest]
    with refused("eval.sha256", value="0" * 64):
        open_source(path, cache=tmp_path / "cache", sha256="0" * 64)


def link(path):
    info = zipfile.ZipInfo("data/qasper.jsonl")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as content:
        content.writestr(info, "/etc/passwd")


def changed(change):
    """Writes an archive of 500 rows with its bytes changed."""

    def write(path):
        whole = zip_of(path, {"data/qasper.jsonl": jsonl(*(row(input=str(i)) for i in range(500)))}).read_bytes()
        path.write_bytes(change(whole))

    return write


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


OUTSIDE = ["../qasper.jsonl", "data/../../qasper.jsonl", "/qasper.jsonl", "C:\\q.jsonl", "..\\q.jsonl"]
BAD_ARCHIVES = {
    **{name: partial(zip_of, members={"data/lcc.jsonl": jsonl(row()), name: jsonl(row())}) for name in OUTSIDE},
    "a link": link,
    "no task": partial(zip_of, members={"a.txt": ""}),
    "a task twice": partial(zip_of, members={"a/lcc.jsonl": "", "b/lcc.jsonl": ""}),
    "nothing": changed(lambda content: b""),
    "its beginning": changed(lambda content: content[:30]),
    "half of it": changed(lambda content: content[: len(content) // 2]),
    "all but its end": changed(lambda content: content[:-10]),
    "a flipped byte": changed(flipped),
    "more than may be read": partial(zip_of, members={"qasper.jsonl": jsonl(row())}),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_nothing_is_written(what, tmp_path, monkeypatch):
    if what == "more than may be read":
        monkeypatch.setattr(archive, "LARGEST_ARCHIVE", 10)
    BAD_ARCHIVES[what](tmp_path / "data.zip")
    with refused("eval.data"):
        open_source(tmp_path / "data.zip", cache=tmp_path / "cache")
    assert list(tmp_path.rglob("*.jsonl")) == []
    assert not any((tmp_path / "cache").glob("*"))


def test_hub_download_is_pinned_and_its_sha256_checked(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "data.zip", {"data/qasper.jsonl": jsonl(row())})
    calls = []

    def download(repository, filename, **options):
        calls.append((repository, filename, options))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with refused("eval.sha256", value=archive.HUB_SHA256):
        open_source("hub", cache=tmp_path / "cache")
    assert calls == [("THUDM/LongBench", "data.zip", {"repo_type": "dataset", "revision": archive.HUB_REVISION})]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = open_source("hub", cache=tmp_path / "cache", sha256=digest, repository="me/copy", revision="abc")
    assert calls[1] == ("me/copy", "data.zip", {"repo_type": "dataset", "revision": "abc"})
    assert load_task(folder, QASPER)[0].answers == ("on the mat",)


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path, monkeypatch):
    attempts = []

    def refuse(*arguments, **options):
        attempts.append(options)
        raise ConnectionError("no route to host.\nCheck your network.")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with refused("eval.data", value="THUDM/LongBench"):
        open_source("hub", cache=tmp_path / "cache")
    assert [attempt["timeout"] for attempt in attempts] == [archive.HUB_TIMEOUT]


def test_a_cached_download_needs_no_connection(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "datasets--THUDM--LongBench" / "snapshots" / archive.HUB_REVISION
    snapshot.mkdir(parents=True)
    path = zip_of(snapshot / "data.zip", {"data/qasper.jsonl": jsonl(row())})
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", None)  # a call would fail
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert archive.download().samefile(path)
    path.unlink()
    with refused("eval.data"):
        archive.download()


def test_unwritable_cache_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with refused("COMPRESSKV_CACHE"):
        open_source(zip_of(tmp_path / "data.zip", {"qasper.jsonl": jsonl(row())}), cache=tmp_path / "cache")


def test_an_altered_row_of_a_directory_keeps_its_number_and_is_not_official(tmp_path, monkeypatch):
    def official_row(number):
        return row(answers=[f"answer {number}"], length=6)  # three words of context, one of input, two of the answer

    prints = [official.fingerprint([f"answer {number}"], 6) for number in range(3)]
    monkeypatch.setattr(official, "_index", lambda: {"qasper": prints})
    rows = [official_row(0), official_row(1) | {"context": "The cat slept on it."}, official_row(2)]
    loaded = load_task(folder_of(tmp_path, jsonl(*rows)), QASPER)
    assert [record.row for record in loaded] == [0, 1, 2]
    assert [bool(record.problem) for record in loaded] == [False, True, False]
    assert "6 words" in loaded[1].problem


def test_rows_that_are_not_official_are_said_once_for_all_protocols(tmp_path, capsys):
    folder = folder_of(tmp_path, jsonl(row(), row()))
    config = composed("eval=longbench", f"eval.data={folder}", "eval.tasks=[qasper]")
    evaluation = job_from(config).eval
    for protocol in ("corrected", "released"):
        [task] = evaluation.make_tasks(None, protocol)
        assert list(task.records) == ["0", "1"]
    said = capsys.readouterr().err
    assert said == "qasper: 2 of 2 rows are not official (row 0: no official row has its answers and length)\n"


@pytest.fixture
def small_index(monkeypatch):
    rows = [official.fingerprint([f"answer {i}"], i) for i in range(4)]
    monkeypatch.setattr(official, "_index", lambda: {"qasper": rows})


def test_check_counts_matching_mismatching_and_missing_rows(small_index):
    def record(number, answer=None, length=None):
        return number, [answer or f"answer {number}"], number if length is None else length

    def counts(*rows):
        check = official.check_rows("qasper", rows)
        assert check.matching + check.missing == check.official == 4
        return check.matching, check.mismatching, check.missing, check.complete

    whole = [record(i) for i in range(4)]
    assert counts(*whole) == (4, 0, 0, True)
    assert counts(*whole[:3]) == (3, 0, 1, False)
    assert counts(*whole[:3], record(3, "wrong")) == (3, 1, 1, False)
    assert counts(*whole[:3], record(3, length=9)) == (3, 1, 1, False)
    assert counts(*whole, record(4)) == (4, 1, 0, False)
    assert counts(record(1, "answer 0", 0)) == (0, 1, 4, False)  # an official row under another number


def test_rows_without_a_number_are_located_by_their_content(small_index, tmp_path):
    def numbers(*which, limit=None):
        rows = [row(answers=[f"answer {i}"], length=i) if i < 9 else row(answers=["foreign"]) for i in which]
        return [record.row for record in load_task(folder_of(tmp_path, jsonl(*rows)), QASPER, limit)]

    assert numbers(0, 1, 2, 3) == [0, 1, 2, 3]
    assert numbers(2, 3) == [2, 3]
    assert numbers(3, 1, 0) == [3, 1, 0]
    assert numbers(9, 9, 9) == [0, 1, 2]
    assert numbers(0, 9, 2) == [0, 1, 2]  # a row that was altered keeps its place
    assert numbers(9, 0, 3) == [200, 0, 3]
    assert numbers(9, 0, 3, limit=1) == [200]


def test_rows_of_equal_content_keep_their_places(monkeypatch):
    prints = [official.fingerprint(["yes"], 5), official.fingerprint(["no"], 5)]
    monkeypatch.setattr(official, "_index", lambda: {"qasper": [prints[0], prints[1], prints[0]]})
    yes, no = (["yes"], 5), (["no"], 5)
    assert official.locate("qasper", [yes, no, yes]) == [0, 1, 2]
    assert official.locate("qasper", [no, no, yes, yes]) == [None, 1, 2, 0]
    assert official.locate("qasper", [yes, yes, yes]) == [0, None, 2]


@pytest.mark.parametrize(
    ("mismatching", "official_ones"), [(0, ""), (1, ", 2 of them official"), (3, ", none of them official")]
)
def test_a_partial_foreign_file_and_a_partial_official_one_read_differently(mismatching, official_ones):
    check = official.RowCheck("qasper", 200, 3 - mismatching, mismatching, 197 + mismatching)
    samples = [SampleScore(1, 1, False)] * 3
    assert task_score(QASPER, samples, check).problem == f"incomplete: 3 of 200 rows{official_ones}"


@pytest.mark.parametrize("name", ENGLISH)
def test_real_rows_are_official_and_found_without_their_numbers(name, shared, tmp_path):
    assert not any(record.problem for record in load_task(open_source(shared / "data" / "longbench"), TASKS[name]))
    lines = [json.loads(line) for line in (shared / "data" / "longbench" / f"{name}.jsonl").open()]
    expected = [line.pop("_lb_index") for line in lines]
    folder = folder_of(tmp_path, jsonl(*reversed(lines)), f"{name}.jsonl")
    assert [record.row for record in load_task(folder, TASKS[name])] == expected[::-1]


def test_unordered_check_for_predictions(small_index):
    rows = [((f"answer {i}",), i) for i in (2, 0, 3, 1)]
    assert official.check_unordered("qasper", rows).complete
    check = official.check_unordered("qasper", [*rows[:3], rows[0]])
    assert (check.matching, check.mismatching, check.missing) == (3, 1, 1)


def test_index_can_be_built_from_any_full_copy(tmp_path):
    for name in ALL:
        folder_of(tmp_path, jsonl(*[row(length=i) for i in range(TASKS[name].n)]), f"{name}.jsonl")
    index = official.build_index(tmp_path)
    assert {name: len(rows) // 6 for name, rows in index.items()} == {name: TASKS[name].n for name in ALL}
    assert index["lcc"].startswith(official.fingerprint(["on the mat"], 0))
    folder_of(tmp_path, jsonl(row()), "lcc.jsonl")
    with refused(None):
        official.build_index(tmp_path)


def test_index_in_the_repository_has_every_official_row():
    index = json.loads(official.INDEX.read_text(encoding="ascii"))
    assert {name: len(rows) // 6 for name, rows in index.items()} == {name: TASKS[name].n for name in ALL}


@pytest.mark.parametrize("name", ENGLISH)
def test_index_agrees_with_the_official_answers(name, shared):
    """The shared files have whole answers, except in two tasks, which have only their first 80 characters."""
    rows = [json.loads(line) for line in (shared / "data" / "longbench_official_index" / f"{name}.jsonl").open()]
    check = official.check_rows(name, ((line["_lb_index"], line["answers"], line["length"]) for line in rows))
    if name in ("gov_report", "multi_news"):
        assert len(rows) == check.official
    else:
        assert check.complete
