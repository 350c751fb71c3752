import hashlib
import json

import pytest

from evals.longbench.metrics import METRICS
from evals.longbench.tasks import ALL, CATEGORIES, ENGLISH, TASKS, get_task, select_tasks
from tests.support.refusals import refused

# sha256 of dataset2prompt.json's 21 templates, sorted by task, joined by a zero byte
TEMPLATES_SHA256 = "c69b42dd080a3fe98e7934427333b379b4990a72be20e43ea499d55caf4ff840"


def test_there_are_21_tasks_of_which_16_english_in_six_categories():
    assert (len(ALL), len(ENGLISH), len(CATEGORIES)) == (21, 16, 6)
    assert sum(TASKS[name].n for name in ENGLISH) == 3750
    chinese = {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}
    assert set(ALL) - set(ENGLISH) == chinese


def test_exceptions_to_the_rule():
    few_shot = {"trec", "triviaqa", "samsum", "lsht"}
    assert {name for name in ALL if TASKS[name].first_line} == few_shot
    assert {name for name in ALL if not TASKS[name].chat_wrapper} == few_shot | {"lcc", "repobench-p"}
    stops = {name: (task.stop, task.min_new_tokens) for name, task in TASKS.items() if task.stop != "eos"}
    assert stops == {"samsum": ("newline", 1)}
    sizes = {name: task.n for name, task in TASKS.items() if task.n != 200}
    assert sizes == {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}


def test_every_metric_exists():
    assert {task.metric for task in TASKS.values()} == set(METRICS)


def test_templates_are_the_official_ones_byte_for_byte():
    joined = "\0".join(TASKS[name].prompt for name in sorted(ALL))
    assert hashlib.sha256(joined.encode()).hexdigest() == TEMPLATES_SHA256


def test_prompts_and_lengths_equal_the_specification(shared):
    prompts = json.loads((shared / "spec" / "longbench_prompts.json").read_text(encoding="utf-8"))
    lengths = json.loads((shared / "spec" / "longbench_max_new_tokens.json").read_text(encoding="utf-8"))
    assert {name: task.prompt for name, task in TASKS.items()} == prompts
    assert {name: task.max_new_tokens for name, task in TASKS.items()} == lengths


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("english", ENGLISH),
        ("all21", ALL),
        ("qasper", ("qasper",)),
        (["lcc", "qasper", "lcc"], ("lcc", "qasper")),
    ],
)
def test_selections(selection, names):
    assert tuple(task.name for task in select_tasks(selection)) == names


@pytest.mark.parametrize(
    ("call", "value"),
    [(lambda: get_task("quasper"), "quasper"), (lambda: select_tasks(["lcc", "quasper"]), "quasper"),
     (lambda: select_tasks([]), [])],
)  # fmt: skip
def test_unknown_tasks_and_none_are_refused(call, value):
    with refused("eval.tasks", value=value):
        call()
