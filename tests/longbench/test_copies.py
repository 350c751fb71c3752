"""LongBench copies of the library `datasets`, with the official columns or with kvpress's parts of prompts."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict

from evals.longbench import official
from evals.longbench.data import load_task, open_source, read_task
from evals.longbench.prompts import template
from evals.longbench.tasks import TASKS
from tests.support.refusals import refused

# Where other tools cut the official prompts: (end of the first piece, the answer's opening).
CUTS = {
    "narrativeqa": ("any explanation.\n\n", "Answer:"),
    "multifieldqa_zh": ("不要输出任何其他字词。\n\n", "回答："),
    "gov_report": ("{context}\n\n", "Summary:"),
    "trec": ("{context}\n", "Type:"),
    "samsum": ("{context}\n\n", "Summary:"),
    "passage_retrieval_en": ("The following is an abstract.\n\n", "The answer is: "),
    "lcc": ("{context}", "Next line of code:\n"),
    "repobench-p": ("{context}", "Next line of code:\n"),
    "lsht": ("{context}\n", ""),
}


def in_pieces(task, row, cut=None):
    """A row of kvpress's copies."""
    first, prefix = cut or CUTS[task.name]
    text = task.prompt
    end = text.rindex(first, 0, text.index("{input}") if "{input}" in text else None) + len(first)
    question = text[end:].replace("{input}", row["input"]).removesuffix(prefix)
    rest = {key: value for key, value in row.items() if key not in ("input", "context", "_lb_index")}
    return {
        **rest,
        "context": text[:end].replace("{context}", row["context"]),
        "question": question,
        "answer_prefix": prefix,
        "task": task.name,
        "max_new_tokens": task.max_new_tokens + 20,
    }


def a_row(task, number=0):
    """A row whose length fits its number of words."""
    context, question = f"Some text of {number} words.\n\nMore.\n", "Where is it?" if "{input}" in task.prompt else ""
    if task.name in ("trec", "samsum"):
        question += " Type:" if task.name == "trec" else " Summary:"
    return {
        "input": question,
        "context": context,
        "answers": [f"in town {number}"],
        "length": len(context.split()) + len(question.split()) + 3,
        "dataset": task.name,
        "language": task.language,
        "all_classes": ["in town 0", "b"] if task.metric == "classification" else None,
        "_id": str(number),
    }


@pytest.fixture
def index(monkeypatch):
    """An official index in which each task has the rows of `a_row`, 0 to 3."""
    rows = {name: [a_row(task, number) for number in range(4)] for name, task in TASKS.items()}
    prints = {name: [official.fingerprint(row["answers"], row["length"]) for row in rows[name]] for name in rows}
    monkeypatch.setattr(official, "_index", lambda: prints)
    return rows


def altered_rows(folder, name):
    """The problems of rows that are not official, by row number."""
    return {record.row: record.problem for record in load_task(folder, TASKS[name]) if record.problem}


def check(task, records):
    return official.check_flags(task.name, [not record.problem for record in records])


def saved(path, rows):
    Dataset.from_list(rows).save_to_disk(str(path))


def saved_splits(path, rows):
    data = Dataset.from_list(rows)
    DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(str(path))


def parquet(path, rows):
    path.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(path / "test-00000-of-00001.parquet")
    (path / "train-00000-of-00001.parquet").write_text("not read")


def named_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path.parent / f"{path.name}-test.parquet")


@pytest.mark.parametrize(
    ("keep", "name"), [(saved, "qasper"), (saved_splits, "trec"), (parquet, "lsht"), (named_parquet, "trec")]
)
def test_a_copy_in_the_official_columns(keep, name, index, tmp_path):
    keep(tmp_path / "copy" / name, index[name])
    folder = open_source(tmp_path / "copy", cache=tmp_path / "cache")
    records = load_task(folder, TASKS[name])
    assert [(record.row, record.context, record.input) for record in records] == [
        (number, row["context"], row["input"]) for number, row in enumerate(index[name])
    ]
    assert check(TASKS[name], records).complete
    assert altered_rows(folder, name) == {}


@pytest.mark.parametrize("name", CUTS)
def test_a_copy_in_pieces_gives_the_official_prompts(name, index, tmp_path):
    task = TASKS[name]
    pieces = [in_pieces(task, row) for row in index[name]]
    saved(tmp_path / "copy", pieces)
    records = load_task(open_source(tmp_path / "copy", cache=tmp_path / "cache"), task)
    for record, row, piece in zip(records, index[name], pieces, strict=True):
        assert template(task, record) == piece["context"] + piece["question"] + piece["answer_prefix"]
        assert (record.context, record.input) == (row["context"], row["input"])
    assert [record.row for record in records] == [0, 1, 2, 3]


def test_one_dataset_of_several_tasks(index, tmp_path):
    rows = [in_pieces(TASKS[name], row) for name in ("narrativeqa", "trec") for row in index[name]]
    Dataset.from_list([*rows, {**rows[0], "task": "narrativeqa_e"}]).to_parquet(tmp_path / "all.parquet")
    folder = open_source(tmp_path / "all.parquet", cache=tmp_path / "cache")
    assert [len(load_task(folder, TASKS[name])) for name in ("narrativeqa", "trec")] == [4, 4]
    with refused("eval.tasks", value="qasper"):
        load_task(folder, TASKS["qasper"])


@pytest.mark.parametrize(
    "change",
    [
        {"context": "Some text of 0 words.\n\nMore words.\n"},
        {"context": "Some text"},
        {"question": "Where is it now?"},
        {"answers": ["elsewhere entirely today"]},
        {"length": 5},
    ],
)
def test_altered_rows_are_said_and_are_never_official(change, index, tmp_path):
    name = "hotpotqa"
    cut = ("do not output any other words.\n\n", "Answer:")
    rows = [dict(row) for row in index[name]]
    rows[1] |= {"input" if key == "question" else key: value for key, value in change.items()}
    saved(tmp_path / "copy" / name, [in_pieces(TASKS[name], row, cut) for row in rows])
    folder = open_source(tmp_path / "copy", cache=tmp_path / "cache")
    records = load_task(folder, TASKS[name])
    assert [record.row for record in records] == [0, 201, 2, 3]
    checked = check(TASKS[name], records)
    assert (checked.matching, checked.mismatching, checked.missing) == (3, 1, 1)
    assert list(altered_rows(folder, name)) == [201]


def another_template(rows):
    rows[2]["context"] = rows[2]["context"].replace("You are given a story", "Read a story")


@pytest.mark.parametrize(
    ("change", "numbers", "altered"),
    [(another_template, [0, 1, 202, 3], [202]), (lambda rows: rows.append(rows[1]), [0, 1, 2, 3, 204], [204])],
    ids=["another template", "a row given twice"],
)
def test_an_altered_prompt_and_a_second_copy_of_a_row_are_not_official(change, numbers, altered, index, tmp_path):
    rows = [in_pieces(TASKS["narrativeqa"], row) for row in index["narrativeqa"]]
    change(rows)
    saved(tmp_path / "copy", rows)
    folder = open_source(tmp_path / "copy", cache=tmp_path / "cache")
    assert [record.row for record in load_task(folder, TASKS["narrativeqa"])] == numbers
    assert list(altered_rows(folder, "narrativeqa")) == altered


@pytest.mark.parametrize("keep", [saved, parquet])
def test_a_missing_row_leaves_the_others_their_numbers_and_the_task_incomplete(keep, index, tmp_path):
    keep(tmp_path / "copy" / "qasper", [row for number, row in enumerate(index["qasper"]) if number != 1])
    records = load_task(open_source(tmp_path / "copy", cache=tmp_path / "cache"), TASKS["qasper"])
    assert [(record.row, record.problem) for record in records] == [(0, ""), (2, ""), (3, "")]
    checked = check(TASKS["qasper"], records)
    assert (checked.matching, checked.missing, checked.complete) == (3, 1, False)


def test_a_copy_is_converted_once_and_again_when_it_changes(index, tmp_path):
    saved(tmp_path / "copy" / "qasper", index["qasper"])
    first = open_source(tmp_path / "copy", cache=tmp_path / "cache")
    (first / "marker").touch()
    assert (open_source(tmp_path / "copy", cache=tmp_path / "cache") / "marker").exists()
    saved(tmp_path / "other" / "qasper", index["qasper"][:2])
    second = open_source(tmp_path / "other", cache=tmp_path / "cache")
    assert second != first
    assert read_task(first, TASKS["qasper"]) != read_task(second, TASKS["qasper"])


@pytest.mark.parametrize(
    ("change", "field", "options"),
    [
        (lambda row: {"x": 1}, "eval.data", {}),
        (lambda row: {key: value for key, value in row.items() if key != "length"}, "length", {}),
        (lambda row: {key: value for key, value in row.items() if key != "input"}, "question", {}),
        (lambda row: b"PAR1", "eval.data", {}),
        (lambda row: row, "eval.sha256", {"sha256": "0" * 64}),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(change, field, options, index, tmp_path):
    changed = change(index["qasper"][0])
    if isinstance(changed, bytes):
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "qasper.parquet").write_bytes(changed)
    else:
        saved(tmp_path / "copy", [changed])
    with refused(field):
        open_source(tmp_path / "copy", cache=tmp_path / "cache", **options)
    assert not any((tmp_path / "cache").glob("*"))


def test_a_dataset_that_the_hub_does_not_give_is_one_sentence(tmp_path, monkeypatch):
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no")))
        with refused("eval.data", value="nobody/nothing"):
            open_source("nobody/nothing", cache=tmp_path / "cache")


def test_a_hub_that_cannot_be_reached_leaves_the_copy_of_the_last_time(index, tmp_path, monkeypatch):
    parquet(tmp_path / "snapshot" / "qasper", index["qasper"])

    def snapshot(repository, *, local_files_only, **_):
        assert local_files_only
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_task(open_source("somebody/LongBench", cache=tmp_path / "cache"), TASKS["qasper"])


def test_a_dataset_of_the_hub_is_read_from_its_parquet_files(index, tmp_path, monkeypatch):
    parquet(tmp_path / "snapshot" / "qasper", index["qasper"])
    asked = []

    class Info:
        sha = "abc"
        siblings = tuple(SimpleNamespace(rfilename=name) for name in ("README.md", "qasper/test-0.parquet", "a.jsonl"))

    def snapshot(repository, **options):
        asked.append((repository, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: Info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    folder = open_source("somebody/LongBench", cache=tmp_path / "cache")
    assert len(load_task(folder, TASKS["qasper"])) == 4
    expected = {"repo_type": "dataset", "revision": "abc", "local_files_only": False, "allow_patterns": ["*.parquet"]}
    assert asked == [("somebody/LongBench", expected)]


@pytest.mark.parametrize("name", ["qasper", "gov_report", "trec", "lcc"])
def test_real_rows_in_a_copy_are_official(name, shared, tmp_path):
    rows = [json.loads(line) for line in (shared / "data" / "longbench" / f"{name}.jsonl").open()]
    numbers = [row.pop("_lb_index") for row in rows]
    for row in rows:
        row["_id"] = str(row["_id"])
    saved(tmp_path / "copy" / name, rows)
    folder = open_source(tmp_path / "copy", cache=tmp_path / "cache")
    assert [record.row for record in load_task(folder, TASKS[name])] == numbers
    rows[0]["context"] = rows[0]["context"][:-2000]
    saved(tmp_path / "altered" / name, rows)
    folder = open_source(tmp_path / "altered", cache=tmp_path / "cache")
    assert list(altered_rows(folder, name)) == [TASKS[name].n]
