"""The scorer of prediction files: golden parity, the table, --json, and every kind of bad input."""

import json
import subprocess
import sys
import time

import pytest

from evals.__main__ import main
from evals.longbench import aggregate, score
from evals.longbench.metrics import SampleScore
from evals.longbench.official import RowCheck
from evals.longbench.tasks import ALL, ENGLISH, TASKS
from tests.support.command import ROOT
from tests.support.refusals import refused


def prediction(**changes):
    return {"pred": "the cat", "answers": ["cat"], "all_classes": None, "length": 3} | changes


def write(folder, name, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder, capsys, *options):
    status = main(["score", str(folder), *options])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="session")
def golden(shared):
    return shared / "golden" / "longbench_metrics" / "llama2-7b-chat"


def test_golden_predictions_score_what_the_official_evaluation_gives(golden):
    expected = json.loads((golden / "scores.json").read_text())
    scores = score.score_folder(golden)
    assert set(scores) == set(ALL)
    assert {name: result.score for name, result in scores.items()} == expected
    assert [name for name, result in scores.items() if result.problem] == []
    assert sum(result.overflow for result in scores.values()) == 0
    average = aggregate.averages_of(scores)["average of 16"]
    assert not average.partial
    assert average.mean == round(sum(expected[name] for name in ENGLISH) / 16, 2)
    assert average.interval[0] < average.mean < average.interval[1]


def test_faster_than_the_plain_reference_with_the_same_result(golden, reference):
    tasks = ("qmsum", "samsum", "lcc")
    loaded = {name: [json.loads(line) for line in (golden / f"{name}.jsonl").open(encoding="utf-8")] for name in tasks}
    start = time.perf_counter()
    plain = {name: reference.score(name, loaded[name]) for name in tasks}
    middle = time.perf_counter()
    ours = {name: score.score_file(golden / f"{name}.jsonl", TASKS[name]).score for name in tasks}
    assert ours == plain
    assert time.perf_counter() - middle <= 0.5 * (middle - start)


def test_command_prints_exactly_one_json_object(tmp_path):
    write(tmp_path, "qasper.jsonl", prediction(), prediction(pred="a dog"))
    write(tmp_path, "dureader.jsonl", {"pred": "猫", "answers": ["猫"]})  # the length is not needed
    command = [sys.executable, "-m", "evals.longbench.score", str(tmp_path), "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {"qasper": 50.0, "dureader": 100.0}
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "line", "field"),
    [
        ("qasper.jsonl", '{"pred": "cat", "answ', None),
        ("qasper.jsonl", "\n{}", None),
        ("qasper.jsonl", "[1]", None),
        ("qasper.jsonl", {"pred": "cat"}, "answers"),
        ("qasper.jsonl", prediction(answers=[]), "answers"),
        ("qasper.jsonl", prediction(answers="cat"), "answers"),
        ("qasper.jsonl", {"answers": ["cat"]}, "pred"),
        ("qasper.jsonl", prediction(pred=None), "pred"),
        ("qasper.jsonl", prediction(length="3"), "length"),
        ("trec.jsonl", prediction(), "all_classes"),
        ("passage_retrieval_en.jsonl", prediction(), "answers"),
    ],
)
def test_bad_line(tmp_path, capsys, name, line, field):
    first = prediction(all_classes=["cat"], answers=["Paragraph 1"])
    folder = write(tmp_path, name, first, line)
    with refused(field, where=f"{tmp_path / name}, line 2") as caught:
        score.score_folder(folder)
    assert run(folder, capsys, "--json") == (2, "", f"error: {caught.value}\n")


@pytest.mark.parametrize("content", [b'{"pred": "\xff"}\n', b"[" * 200_000], ids=["no text", "too deep"])
def test_bad_content(tmp_path, content):
    (tmp_path / "qasper.jsonl").write_bytes(content)
    with refused(None, where=f"{tmp_path / 'qasper.jsonl'}, line 1"):
        score.score_folder(tmp_path)


def test_bad_files(tmp_path):
    with refused("DIR", value=tmp_path):
        score.score_folder(tmp_path)
    path, other = tmp_path / "qasper.jsonl", tmp_path / "passage_count_e.jsonl"
    for place, make in ((path, path.touch), (path, path.mkdir), (other, other.mkdir)):
        make()
        with refused(None, value=place):
            score.score_folder(tmp_path)
        place.unlink() if place.is_file() else place.rmdir()


def test_the_last_lines_classes_count_for_all_as_in_the_official_evaluation(tmp_path):
    lines = [prediction(pred="cat", all_classes=names) for names in (["cat", "ca"], ["cat"])]
    result = score.score_file(write(tmp_path, "trec.jsonl", *lines) / "trec.jsonl", TASKS["trec"])
    assert result.samples == (1.0, 1.0)


def test_table_marks_what_is_incomplete_and_averages_nothing_from_it(tmp_path, capsys):
    write(tmp_path, "qasper.jsonl", prediction(), prediction())
    status, out, err = run(tmp_path, capsys)
    assert (status, err) == (0, "")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert "100.00" in rows["qasper"]
    assert "incomplete: 2 of 200 rows" in " ".join(out.split())
    assert "incomplete: 0 of 16 tasks" in rows["average of 16"]
    assert "100.00" not in rows["average of 16"] + rows["single-doc QA"]


def test_table_names_pairs_too_deep_for_the_official_recursion(tmp_path, capsys):
    long = " ".join(f"w{i}" for i in range(1200))
    write(tmp_path, "qmsum.jsonl", prediction(pred=long, answers=["w0"]))
    status, out, err = run(tmp_path, capsys, "--json")
    assert status == 0
    assert json.loads(out)["qmsum"] > 0
    assert err.startswith("qmsum: 1 samples ")
    assert err.endswith("the score is 0.00.\n")


def complete(name, value=1.0):
    task = TASKS[name]
    samples = [SampleScore(value, value, overflow=False)] * (task.n // 2) + [SampleScore(0, 0, False)] * (task.n // 2)
    return aggregate.task_score(task, samples, RowCheck(name, task.n, task.n, 0, 0))


def test_averages_are_partial_without_every_task_of_their_group():
    scores = {name: complete(name, name in ENGLISH) for name in ALL}  # the Chinese tasks are in no average
    cells = aggregate.averages_of(scores)
    assert {cell.mean for cell in cells.values()} == {50.0}
    assert [cells[name].n for name in ("average of 16", "code", "single-doc QA")] == [3750, 1000, 550]
    low, high = cells["average of 16"].interval
    assert 48 < low < 50 < high < 52
    assert not any(cell.partial for cell in cells.values())

    del scores["lcc"]
    cells = aggregate.averages_of(scores)
    partial = {name: (len(cell.strata), cell.tasks) for name, cell in cells.items() if cell.partial}
    assert partial == {"code": (1, 2), "average of 16": (15, 16)}
    assert list(aggregate.averages_of({"trec": scores["trec"]})) == ["few-shot", "average of 16"]


def test_rows_that_are_not_official_are_named():
    samples = [SampleScore(1, 1, False)] * 200
    wrong = aggregate.task_score(TASKS["qasper"], samples, RowCheck("qasper", 200, 198, 2, 2))
    assert wrong.problem == "2 rows are not official"
    assert aggregate.averages_of({"qasper": wrong})["average of 16"].partial
    assert aggregate.task_score(TASKS["qasper"], samples * 2).problem == "400 rows instead of 200"


def test_a_single_sample_has_no_interval():
    assert aggregate.interval(aggregate.task_score(TASKS["qasper"], [SampleScore(1, 1, False)])) is None
