"""Eviction before the question from the command line: shared contexts, resume, the sweep's column, refusals."""

import json
import shutil

import pytest

from compresskv.protocol import EvaluationProtocol
from evals.jsonl.evaluation import JsonlTask
from evals.niah.evaluation import NiahTask
from evals.results.means import groups_of
from evals.results.record import records
from evals.results.shows import hook
from evals.running.tasks import questions_together, setting_of
from evals.tables.table import SCORE
from tests.support.command import content, kill_and_resume, run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused

BOOKS = ["The cat sat on the mat. " * 30, "The dog lay by the fire. " * 30]
QUESTIONS = ["Where is the animal?", "Which animal is it?"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pets.jsonl"
    records = [{"context": book, "question": question, "answers": ["x"]} for question in QUESTIONS for book in BOOKS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def command(data, tiny):
    return ["eval=jsonl", f"eval.data={data}", "eval.metric=exact_match", "eval.max_new_tokens=6", *tiny]


def test_a_sweep_over_when_has_a_column_and_shares_contexts(command, tmp_path):
    swept = ["-m", "method=full,snapkv", "budget=25%,64", "eviction.when=prompt,context", "fidelity=true"]
    done = run(*swept, *command, env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "out")
    assert sorted((record.when, record.method, str(record.budget)) for record in found) == sorted(
        [(when, "snapkv", budget) for when in ("prompt", "context") for budget in ("25%", "64")]
        + [(when, "full", "None") for when in ("prompt", "context")]
    )
    assert not any(record.problems for record in found)
    for record in found:
        for line in record.covered:
            context = line.get("context_tokens", line["prompt_tokens"])
            assert ("context_tokens" in line) == (record.when == "context")
            expected = {"25%": context // 4, "64": 64, "None": context}[str(record.budget)]
            assert line["realised_budget"] == expected
            assert line["kl"] is not None
    (group,) = groups_of(found)
    table = next(table for table in hook("jsonl", "tables")(group) if table.metric == SCORE)
    assert table.has_whens
    assert [row.when for row in table.rows] == ["prompt", "context"] * 3


def test_a_run_that_was_killed_continues_with_the_same_lines(command, tmp_path):
    swept = ["-m", "method=full,snapkv", "budget=64,25%", "eviction.when=context", *command]
    resumed = kill_and_resume(swept, tmp_path, after=8)
    shutil.rmtree(tmp_path / "out")
    assert run(*swept).returncode == 0
    assert content(tmp_path) == resumed


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("eval=efficiency",), "eviction.when"),
        (("eval=attention",), "eviction.when"),
        (("protocol=released",), "eviction.when"),
        (("eviction.when=never",), "eviction.when"),
        (("+eviction.whem=context",), "eviction.whem"),
    ],
)
def test_what_asks_no_question_is_refused(overrides, field):
    with refused(field):
        job("eviction.when=context", *overrides)


def test_records_without_a_question_are_refused_by_name(command, data):
    data.write_text(json.dumps({"prompt": "Say yes. " * 40, "answers": ["yes"]}) + "\n")
    done = run("method=snapkv", "budget=64", "eviction.when=context", *command)
    assert done.returncode != 0
    assert_refused(done, "eviction.when")


def test_samples_of_one_context_follow_each_other(data, default_model):
    config = job("eval=jsonl", f"eval.data={data}", "eval.metric=exact_match", "eval.max_new_tokens=6").eval
    task = JsonlTask(config, default_model, EvaluationProtocol())
    assert questions_together(dict.fromkeys(task.sample_ids, task), task.sample_ids) == ["0", "2", "1", "3"]
    for id in task.sample_ids:
        sample = task.sample(id)
        before, after = (default_model.tokenizer.decode(part) for part in sample.ids.tensor_split([sample.context]))
        assert before.rstrip().endswith(BOOKS[int(id) % 2].strip())
        assert after.lstrip().startswith(QUESTIONS[int(id) // 2])


def test_the_context_of_a_needle_ends_before_the_question(default_model):
    task = NiahTask(job("eval.lengths=[300]", "eval.depths=2").eval, default_model, EvaluationProtocol())
    for id in task.sample_ids:
        sample = task.sample(id)
        before, after = (default_model.tokenizer.decode(part) for part in sample.ids.tensor_split([sample.context]))
        assert task.config.needle in before
        assert task.config.question not in before
        assert after.startswith(" </book>.\nBased on the content of the book")


def test_eviction_before_the_question_has_its_own_folder(default_model):
    jobs = [job("method=snapkv", "eval.lengths=[300]", f"eviction.when={when}") for when in ("prompt", "context")]
    task = NiahTask(jobs[0].eval, default_model, EvaluationProtocol())
    after_prompt, before_question = (setting_of(default_model, each, task)[1] for each in jobs)
    assert after_prompt.parent == before_question.parent
    assert after_prompt != before_question
