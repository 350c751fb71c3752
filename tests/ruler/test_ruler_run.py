"""`eval=ruler`: prompts in a chat format, what identifies a task, runs that extend each other, tables, refusals."""

import json
from dataclasses import replace

import pytest

from compresskv.protocol import EvaluationProtocol
from evals.results.means import Asked
from evals.results.record import Record
from evals.ruler.__main__ import main
from evals.ruler.config import Ruler
from evals.ruler.evaluation import RulerTask, make_tasks
from evals.ruler.samples import ANSWERS
from evals.ruler.tables import browsed, tables
from evals.ruler.tasks import TASKS
from tests.support.command import content, folders, run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused
from tests.support.trees import line, setting

CONFIG = Ruler("ruler", tasks="all", lengths=(1024,), samples=2, seed=42, qa=None, template_tokens=0)


def task_of(name, model, **changes):
    return RulerTask(replace(CONFIG, **changes), TASKS[name], model, EvaluationProtocol())


def test_sample_ids_are_lengths_and_numbers(default_model):
    task = task_of("vt", default_model, lengths=(1024, 2048))
    assert task.sample_ids == ["L1024-S0", "L1024-S1", "L2048-S0", "L2048-S1"]


@pytest.mark.parametrize("name", ["niah_single_2", "niah_multikey_3", "vt", "cwe", "fwe", "qa_1"])
def test_the_chat_format_holds_the_input_and_the_answer_begins_with_the_prefix(name, default_model, questions_folder):
    task = task_of(name, default_model, lengths=(2600,), qa=str(questions_folder))
    drawn, prompt, sample = task.drawn("L2600-S1"), task.prompt("L2600-S1"), task.sample("L2600-S1")
    assert drawn.input.strip() in prompt.text
    assert prompt.text.endswith(f"<|im_start|>assistant\n{drawn.answer_prefix}")
    question = default_model.tokenizer.decode(sample.ids[sample.context :])
    assert question.strip().startswith(drawn.input[drawn.question :].strip())
    assert question.endswith(f"<|im_start|>assistant\n{drawn.answer_prefix}")
    assert default_model.tokenizer.decode(sample.ids) == prompt.text
    assert sample.stopping.max_new_tokens == TASKS[name].max_new_tokens
    assert sample.reference == ANSWERS[TASKS[name].family](drawn.outputs)
    assert sample.score(sample.reference)["score"] == 100
    assert sample.score("")["score"] == 0
    assert sample.ids.numel() <= task.longest_prompt


def test_without_a_chat_format_the_prompt_is_rulers_text(default_model):
    task = task_of("vt", replace(default_model, chat_template=False))
    drawn, sample = task.drawn("L1024-S0"), task.sample("L1024-S0")
    assert default_model.tokenizer.decode(sample.ids) == drawn.input + drawn.answer_prefix
    question = default_model.tokenizer.decode(sample.ids[sample.context :])
    assert question.strip() == (drawn.input[drawn.question :] + drawn.answer_prefix).strip()
    assert sample.ids.numel() + 30 == drawn.length


def test_answers_are_written_as_in_the_examples(default_model):
    assert ANSWERS["common_words_extraction"](["a", "b"]) == "1. a 2. b"
    assert ANSWERS["niah"](["a", "b", "c"]) == "a, b, and c"
    assert ANSWERS["niah"](["a"]) == "a"


def test_a_wider_run_has_the_same_samples(default_model):
    few = task_of("cwe", default_model)
    many = task_of("cwe", default_model, samples=5, lengths=(600, 1024))
    assert many.sample("L1024-S4").ids.numel()
    for id in few.sample_ids:
        assert many.drawn(id) == few.drawn(id)
    assert many.identity == few.identity


@pytest.mark.parametrize("name", ["fwe", "niah_single_2", "qa_1"])
def test_what_changes_a_prompt_identifies_the_task(name, default_model, questions_folder, tmp_path):
    (tmp_path / "squad.json").write_bytes((questions_folder / "squad.json").read_bytes() + b" ")
    task = task_of(name, default_model, qa=str(questions_folder))
    others = [
        task_of(name, default_model, qa=str(questions_folder), seed=43),
        task_of(name, default_model, qa=str(questions_folder), template_tokens=40),
        task_of(name, replace(default_model, chat_template=False), qa=str(questions_folder)),
    ]
    for other in others:
        assert other.identity != task.identity
    assert (task_of(name, default_model, qa=str(tmp_path)).identity == task.identity) == (name != "qa_1")


def test_a_length_beyond_the_window_is_refused(default_model):
    model = replace(default_model, window=1024)
    with refused("eval.lengths", value=1024):
        task_of("vt", model)
    left = task_of("vt", model, template_tokens=60)
    assert left.sample("L1024-S0").ids.numel() + 30 <= 1024
    assert task_of("vt", replace(model, chat_template=False)).sample("L1024-S0")


def test_tasks_without_their_questions_are_left_out(default_model, questions_folder, tmp_path):
    names = [task.name for task in make_tasks(default_model, CONFIG, EvaluationProtocol())]
    assert names == [name for name in TASKS if not name.startswith("qa")]
    assert list(CONFIG.units()) == names
    assert list(replace(CONFIG, qa=str(questions_folder)).units()) == list(TASKS)
    assert "qa_1" not in replace(CONFIG, qa=str(tmp_path)).units()


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["eval.tasks=[vt,vtt]"], "eval.tasks"),
        (["eval.tasks=[qa_1]"], "eval.qa"),
        (["eval.qa=/nowhere"], "eval.qa"),
        (["eval.lengths=[]"], "eval.lengths"),
        (["eval.lengths=[0]"], "eval.lengths[0]"),
        (["eval.samples=0"], "eval.samples"),
        (["eval.seed=-1"], "eval.seed"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(overrides, field):
    with refused(field):
        job("eval=ruler", *overrides).eval.check()


def test_more_samples_than_questions_are_refused(questions_folder):
    chosen = ["eval=ruler", f"eval.qa={questions_folder}", "eval.tasks=[qa_2]"]
    job(*chosen, "eval.samples=30").eval.check()
    with refused("eval.samples", value=31):
        job(*chosen, "eval.samples=31").eval.check()


def test_a_wider_run_extends_a_narrower_one(tiny, tmp_path):
    command = ["eval=ruler", "eval.tasks=[niah_multikey_2,fwe]", *tiny]
    first = run(*command, "eval.lengths=[500]", "eval.samples=1", "method=full", env={"COLUMNS": "160"})
    assert first.returncode == 0, first.stderr
    before = content(tmp_path)
    more = ["eval.lengths=[500,600]", "eval.samples=2"]
    done = run("-m", *command, *more, "method=full,snapkv", "budget=64", env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert {folder.parts[-4] for folder in folders(tmp_path)} == {"niah_multikey_2", "fwe"}
    after = content(tmp_path)
    assert len(after) == 4
    for folder, (lines, ids, _) in before.items():
        assert after[folder][1][: len(ids)] == ids
        assert lines.items() <= after[folder][0].items()
        assert set(after[folder][1]) == {"L500-S0", "L500-S1", "L600-S0", "L600-S1"}


def test_columns_are_tasks_then_lengths_then_the_average(tmp_path):
    for method in ("full", "snapkv"):
        for name, scores in (("vt", (40.0, 60.0)), ("qa_1", (0.0, 100.0)), ("niah_single_1", (100.0, 80.0))):
            lines = [
                line(f"L{length}-S0", score, None if method == "full" else 64, length=length, answers=["x"])
                for length, score in zip((4096, 8192), scores, strict=True)
            ]
            setting(tmp_path, lines, method, eval="ruler", task=name, of_eval={"_target_": "evals.ruler.config.Ruler"})
    records = [Record(folder.parent, tmp_path / "runs") for folder in (tmp_path / "runs").rglob("samples.jsonl")]
    (table,) = tables(records)
    assert [table.head(column) for column in table.columns] == ["S-1", "VT", "QA-1", "4K", "8K", "average"]
    cells = table.rows[0].cells
    means = [cells[column].mean for column in table.columns]
    assert means == [90.0, 50.0, 50.0, 46.67, 80.0, 63.33]
    assert not any(cell.partial for cell in table.cells)
    (of_lengths,) = tables(records, Asked(view="lengths"))
    assert [of_lengths.head(column) for column in of_lengths.columns] == ["4K", "8K", "average"]
    assert list(of_lengths.xs.values()) == [4096.0, 8192.0]
    (of_one,) = tables([record.only(["L4096-S0"]) for record in records])
    assert [of_one.head(column) for column in of_one.columns] == ["S-1", "VT", "QA-1", "average"]
    assert browsed(records[0].covered[0], {}) == {"length": 4096, "answers": ["x"]}


def test_records_of_other_tasks_have_no_table(tmp_path):
    assert tables([setting(tmp_path, eval="ruler", task="another")]) == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--task", "vtt", "--length", "1024"], "eval.tasks"),
        (["--task", "qa_1", "--length", "1024"], "eval.qa"),
        (["--task", "vt", "--length", "100"], "eval.lengths"),
        (["--task", "vt", "--length", "1024", "--samples", "0"], "eval.samples"),
        (["--task", "vt", "--length", "1024", "budget=3"], "budget"),
        (["--task", "vt", "--length", "1024", "--model", "nothing"], "model"),
    ],
)
def test_a_command_that_cannot_be_is_refused(arguments, field):
    with refused(field):
        main(arguments)


def test_the_command_prints_lines_of_any_model(checkpoint, questions_folder, capsys):
    options = ["--length", "2600", "--samples", "2", "--qa", str(questions_folder), f"model.path={checkpoint}"]
    main(["--task", "qa_1", *options])
    lines = [json.loads(printed) for printed in capsys.readouterr().out.splitlines()]
    assert [each["index"] for each in lines] == [0, 1]
    assert list(lines[0]) == ["index", "input", "outputs", "length", "length_w_model_temp", "answer_prefix"]


def test_a_failed_task_is_named(tiny):
    assert_refused(run("eval=ruler", "eval.tasks=[vt]", "eval.lengths=[200]", "method=full", *tiny), "eval.lengths")
