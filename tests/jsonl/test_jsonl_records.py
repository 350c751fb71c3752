"""Tasks of one's own: what a file may hold, what is refused in which words, and what the metrics give."""

import json

import pytest

from evals.jsonl.records import read_records
from evals.metrics.answers import METRICS
from tests.support.refusals import refused


def line(**changes):
    fields = {"prompt": "Where?", "answers": ["on the mat"], "metric": "qa_f1", "max_new_tokens": 8}
    return {name: value for name, value in (fields | changes).items() if value != "absent"}


def file_of(tmp_path, *lines):
    path = tmp_path / "task.jsonl"
    path.write_text("".join((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in lines))
    return path


def test_records_in_both_shapes(tmp_path):
    first = line(prompt="absent", context="The cat sat.", question="Where?", id="kv-0", length=3, answer_prefix="On")
    second = line(id=7, metric="classification", all_classes=["on the mat", "b"])
    a, b, c = read_records(file_of(tmp_path, first, second, line(), "\n"))
    assert (a.id, a.prompt, a.answer_prefix, a.metric, a.max_new_tokens) == (
        "kv-0",
        "The cat sat.\n\nWhere?",
        "On",
        "qa_f1",
        8,
    )
    assert (b.id, b.prompt, b.all_classes) == ("7", "Where?", ("on the mat", "b"))
    assert c.id == "2"
    assert [record.score("on the mat") for record in (a, b, c)] == [1, 1, 1]


def test_files_of_ruler_are_taken_as_they_are(tmp_path):
    theirs = {"index": 5, "input": "What are the numbers?", "outputs": ["17", "4"], "answer_prefix": " Of"}
    [a, b] = read_records(file_of(tmp_path, theirs, line(input="left alone", outputs=5)), "string_match_all", 8)
    assert (a.id, a.prompt, a.answers, a.answer_prefix) == ("0", "What are the numbers?", ("17", "4"), " Of")
    assert a.score("It is 17.") == 0.5
    assert (b.prompt, b.answers) == ("Where?", ("on the mat",))
    with refused("prompt"):
        read_records(file_of(tmp_path, theirs | {"context": "x"}), "string_match_all", 8)


def test_settings_of_the_file_are_for_lines_that_set_none(tmp_path):
    path = file_of(tmp_path, line(metric="absent", max_new_tokens="absent"), line())
    records = read_records(path, metric="exact_match", max_new_tokens=32)
    assert [(record.metric, record.max_new_tokens) for record in records] == [("exact_match", 32), ("qa_f1", 8)]


@pytest.mark.parametrize(
    ("bad", "field", "value"),
    [
        (line(prompt="absent"), "prompt", ...),
        (line(context="x"), "prompt", ...),
        (line(prompt="absent", context="x"), "prompt", ...),
        (line(prompt=" \n"), "prompt", ...),
        (line(prompt=5), "prompt", 5),
        (line(answers="absent"), "answers", ...),
        (line(answers=[]), "answers", ()),
        (line(answers="on the mat"), "answers", "on the mat"),
        (line(metric="absent"), "metric", ...),
        (line(metric="f1"), "metric", "f1"),
        (line(metric=["qa_f1"]), "metric", ("qa_f1",)),
        (line(metric="classification"), "all_classes", ...),
        (line(metric="retrieval"), "answers", "on the mat"),
        (line(max_new_tokens="absent"), "max_new_tokens", ...),
        *((line(max_new_tokens=value), "max_new_tokens", value) for value in (0, -1, 2.0, True, "8", 10**9, (8,))),
        (line(id=0), "id", "0"),
        *((line(id=value), "id", value) for value in ("", None, 1.5, "a\nb", "x" * 500)),
        (line(max_new_token=5), "max_new_token", ...),
        (line(answer=["x"]), "answer", ...),
        ('{"prompt": "x"', None, ...),
    ],
)
def test_bad_line(bad, field, value, tmp_path):
    path = file_of(tmp_path, line(), bad)
    with refused(field, value=value, where=f"{path}, line 2"):
        read_records(path)


def test_bad_files(tmp_path):
    with refused(None):
        read_records(file_of(tmp_path))
    with refused("eval.data"):
        read_records(tmp_path / "nowhere.jsonl")
    with refused("eval.data"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "score"),
    [
        ("exact_match", " Paris\n", ["Rome", "Paris"], 1),
        ("exact_match", "Paris.", ["Paris"], 0),
        ("string_match_all", "It is ALPHA and beta.", ["alpha", "Beta", "gamma", "delta"], 0.5),
        ("string_match_part", "It is ALPHA.", ["alpha", "beta"], 1),
        ("string_match_part", "none", ["alpha", "beta"], 0),
        ("rouge1_recall", "a sunny day", ["a rainy day there", "sunny days"], 1),
        ("qa_f1", "the mat", ["a mat", "floor"], 1),
        ("rouge_l", "on the mat", ["on the mat", "x"], 1),
        ("count", "3 or 4", ["3"], 0.5),
    ],
)
def test_metrics(metric, prediction, answers, score):
    assert METRICS[metric](prediction, answers, None) == pytest.approx(score, abs=1e-6)


CLASSES = ["cat", "a cat", "dog"]


@pytest.mark.parametrize(
    ("metric", "answers"),
    [
        *(("rouge1_recall", [answer]) for answer in ("吃三明治", "бутерброд", "Москва 2024", "-")),
        *(("qa_f1", answers) for answers in (["A"], ["-"], ["the"], ["Paris", "An"])),
        ("qa_f1_zh", ["。"]),
        ("rouge_l", ["..."]),
        *(("count", [answer]) for answer in ("three", "-3", "3.5", "3 or 4")),
        *(("classification", [answer]) for answer in ("bird", "Cat")),
        *(("string_match_all", answers) for answers in ([""], ["x", "-"])),
        *(("string_match_part", [answer]) for answer in (" ", ".", "。")),
        *(("exact_match", [answer]) for answer in ("", "\n")),
        *(("rouge_l", [answer]) for answer in (".", " . ", "..")),
        *(("retrieval", [answer]) for answer in ("3", "Paragraph 3 or 4")),
        *(("code_similarity", [answer]) for answer in ("x = 1  # why", "a\nb", "`x`", "")),
    ],
)
def test_an_answer_that_its_metric_cannot_tell_from_none_is_refused(metric, answers, tmp_path):
    bad = line(metric=metric, answers=answers, all_classes=CLASSES, id="the-bad-one")
    with refused("answers", where=f"{tmp_path / 'task.jsonl'}, line 2"):
        read_records(file_of(tmp_path, line(), bad))


@pytest.mark.parametrize(
    ("metric", "answers"),
    [
        ("rouge1_recall", ["für dich"]),
        ("qa_f1", ["苹果", "7", "A+ grade"]),
        ("qa_f1_zh", ["苹果", "c"]),
        ("rouge_l", ["Yes. No.", "-"]),
        ("rouge_l_zh", ["你好。"]),
        ("count", ["3", "07"]),
        ("classification", ["a cat", "dog"]),
        ("string_match_all", ["a", "12", "123"]),
        ("string_match_part", ["B", "是"]),
        ("exact_match", ["-", " x "]),
        ("retrieval", ["Paragraph 3"]),
        ("retrieval_zh", ["段落3"]),
        ("code_similarity", ["    return x"]),
    ],
)
def test_answers_that_can_be_scored_are_taken(metric, answers, tmp_path):
    [record] = read_records(file_of(tmp_path, line(metric=metric, answers=answers, all_classes=CLASSES)))
    assert record.score(" ".join(answers) if metric == "string_match_all" else answers[0]) == pytest.approx(1)
    assert record.score("") < 1
