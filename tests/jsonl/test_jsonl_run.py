"""A task of one's own from the command line: two methods on the tiny model, and mistakes."""

import json

import pytest

from compresskv.protocol import EvaluationProtocol
from evals.jsonl.evaluation import JsonlTask
from tests.support.command import folders, run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused

RECORDS = [
    {"context": "The cat sat on the mat. " * 20, "question": "Where is the cat?", "answers": ["on the mat"]},
    {"prompt": "Say yes. " * 40, "answers": ["yes"], "metric": "exact_match", "max_new_tokens": 3, "id": "yes"},
    {"prompt": "Name three. " * 30, "answers": ["a", "b"], "metric": "string_match_all", "answer_prefix": "They are"},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pets.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.fixture
def command(data, tiny):
    return ["eval=jsonl", f"eval.data={data}", "eval.metric=qa_f1", "eval.max_new_tokens=6", *tiny]


def task_of(model, *overrides):
    return JsonlTask(job("eval=jsonl", *overrides).eval, model, EvaluationProtocol())


def test_two_methods_and_their_table(command, tmp_path):
    done = run("-m", "method=full,snapkv", "budget=64", *command, env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    for text in ("tiny-llama · jsonl", "SnapKV 64", "qa_f1", "exact_match", "string_match_all"):
        assert text in done.stdout
    assert [folder.parts[-4:-1] for folder in folders(tmp_path)] == [
        ("pets", "corrected", "full"),
        ("pets", "corrected", "snapkv"),
    ]
    for folder in folders(tmp_path):
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == ["0", "yes", "2"]
        assert [line["metric"] for line in lines] == ["qa_f1", "exact_match", "string_match_all"]
        assert all(line["new_tokens"] <= (3 if line["id"] == "yes" else 6) for line in lines)
        assert json.loads((folder / "summary.json").read_text())["n"] == 3


def test_a_bad_line_is_named_by_file_and_line(command, data):
    data.write_text(data.read_text() + '{"prompt": "Where?", "answer": ["there"]}\n')
    done = run("method=full", *command)
    assert done.returncode != 0
    assert_refused(done, "answer")


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("eval.data=null", "eval.data", None),
        ("eval.data=/nowhere.jsonl", "eval.data", "/nowhere.jsonl"),
        ("eval.metric=f1", "eval.metric", "f1"),
        ("eval.metric=null", "metric", ...),
        ("eval.limit=0", "eval.limit", 0),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(override, field, value, data, default_model):
    settings = [f"eval.data={data}", "eval.max_new_tokens=6", "eval.metric=qa_f1", override]
    with refused(field, value=value):
        _ = task_of(default_model, *settings).identity


def test_prompts_are_in_the_chat_template_and_answers_in_the_metric(data, default_model):
    task = task_of(default_model, f"eval.data={data}", "eval.metric=qa_f1", "eval.max_new_tokens=6")
    assert task.name == "pets"
    first, last = task.sample("0"), task.sample("2")
    text = default_model.tokenizer.decode(first.ids)
    assert "on the mat. \n\nWhere is the cat?<|im_end|>\n<|im_start|>assistant\n" in text
    assert default_model.tokenizer.decode(last.ids).endswith("<|im_start|>assistant\nThey are")
    assert (first.score("the mat")["score"], last.score("A")["score"]) == (pytest.approx(200 / 3), 50)
    assert (first.stopping.max_new_tokens, task.sample("yes").stopping.max_new_tokens) == (6, 3)
    assert task.longest_prompt == max(task.sample(id).ids.numel() for id in task.sample_ids)
    assert (task.max_new_tokens, first.reference) == (6, "on the mat")


def test_a_wider_run_extends_a_narrower_one_and_another_metric_is_another_setting(data, default_model):
    overrides = [f"eval.data={data}", "eval.metric=qa_f1", "eval.max_new_tokens=6"]
    whole, narrow = task_of(default_model, *overrides), task_of(default_model, *overrides, "eval.limit=2")
    assert narrow.sample_ids == whole.sample_ids[:2]
    assert narrow.identity == whole.identity
    assert task_of(default_model, *overrides, "eval.metric=rouge_l").identity != whole.identity


def test_a_prompt_beyond_the_window_is_refused_not_cut(data, default_model):
    data.write_text(json.dumps({"prompt": "word " * 9000, "answers": ["x"], "id": "long"}) + "\n")
    task = task_of(default_model, f"eval.data={data}", "eval.metric=qa_f1", "eval.max_new_tokens=6")
    with refused("prompt"):
        task.sample("long")


def test_no_name_leaves_its_folder(tmp_path, default_model):
    with refused("eval.data"):
        assert task_of(default_model, f"eval.data={tmp_path / '..jsonl'}").name
