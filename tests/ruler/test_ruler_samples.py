"""What RULER's samples hold: answers that are in the text, a length that fits, a question apart from its context."""

import hashlib
import re
from itertools import islice
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.ruler import drawing, questions, words
from evals.ruler.essays import essay, essay_words, sentences
from evals.ruler.evaluation import score
from evals.ruler.samples import Stream, samples
from evals.ruler.tasks import TASKS, select_tasks
from tests.support.refusals import refused

QUESTIONS = {
    "niah": "What (is|are all) the special magic",
    "variable_tracking": "Question: Find all variables that are assigned the value",
    "common_words_extraction": "Question: What are the 10 most common words in the above list",
    "freq_words_extraction": "Question: Do not provide any explanation",
    "qa": "Answer the question based on the given documents",
}
"""Where kvpress (evaluation/benchmarks/ruler) divides RULER's prompts: at the last of these."""


@pytest.fixture(scope="module")
def drawn(default_model, questions_folder):
    """Two samples of each task."""
    return {
        name: list(islice(samples(task, default_model.tokenizer, 2600, 42, questions_folder), 2))
        for name, task in TASKS.items()
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=attrgetter("name"))
def test_a_sample_fits_and_holds_its_answers(task, drawn, default_model):
    for sample in drawn[task.name]:
        whole = sample.input + sample.answer_prefix
        tokens = len(default_model.tokenizer.tokenize(whole))
        assert sample.length == tokens + task.max_new_tokens
        assert tokens < sample.length <= 2600
        assert all(answer.lower() in whole.lower() for answer in sample.outputs)
        assert score(task.metric, " and ".join(sample.outputs), sample.outputs) == 100


@pytest.mark.parametrize("task", TASKS.values(), ids=attrgetter("name"))
def test_the_question_begins_where_kvpress_divides(task, drawn):
    for sample in drawn[task.name]:
        *_, last = re.finditer(QUESTIONS[task.family], sample.input)
        assert sample.question == last.start()
        assert sample.input[sample.question - 1].isspace()


def test_needles_ask_for_all_values_of_all_queries(drawn):
    assert {name: len(made[0].outputs) for name, made in drawn.items() if TASKS[name].family == "niah"} == {
        "niah_single_1": 1,
        "niah_single_2": 1,
        "niah_single_3": 1,
        "niah_multikey_1": 1,
        "niah_multikey_2": 1,
        "niah_multikey_3": 1,
        "niah_multivalue": 4,
        "niah_multiquery": 4,
    }
    assert drawn["niah_multikey_1"][0].input.count("One of the special magic numbers for ") == 4
    for sample in drawn["niah_multivalue"]:
        assert sample.input[sample.index :].startswith(sample.outputs[0])


@pytest.mark.parametrize("name", ["niah_multikey_2", "vt", "cwe", "fwe", "qa_2"])
def test_a_sample_depends_on_those_before_it_but_not_on_how_many_are_asked_for(
    name, drawn, default_model, questions_folder
):
    made = samples(TASKS[name], default_model.tokenizer, 2600, 42, questions_folder)
    stream = Stream(made)
    assert [stream[1], stream[0]] == [drawn[name][1], drawn[name][0]]
    assert next(samples(TASKS[name], default_model.tokenizer, 2600, 43, questions_folder)) != stream[0]


@pytest.mark.parametrize("name", ["niah_single_2", "vt", "cwe", "fwe", "qa_1"])
def test_texts_of_one_line_have_no_line_break(name, default_model, questions_folder):
    made = samples(TASKS[name], default_model.tokenizer, 2600, 42, questions_folder, template_tokens=9, one_line=True)
    sample = next(made)
    assert not re.search(r"[\n\t]|  ", sample.input + sample.answer_prefix)
    assert sample.line["length_w_model_temp"] == sample.length + 9 <= 2600
    assert re.match(QUESTIONS[TASKS[name].family], sample.input[sample.question :])


@pytest.mark.parametrize("task", TASKS.values(), ids=attrgetter("name"))
def test_a_length_that_nothing_fits_into_is_refused(task, default_model, questions_folder, monkeypatch):
    monkeypatch.setattr(drawing, "TRIES", 3)
    with refused("eval.lengths", value=150):
        next(samples(task, default_model.tokenizer, 150, 42, questions_folder))
    stream = Stream(samples(task, default_model.tokenizer, 150, 42, questions_folder))
    for number in (0, 1, 0):
        with refused("eval.lengths", value=150):
            stream[number]


def test_essays_begin_again_where_they_are_too_short():
    known = essay_words()
    assert essay(5) == " ".join(known[:5])
    assert essay(len(known) + 3).split(" ") == known + known[:3]
    assert sentences(" Dr. Smith left. He was tired. ") == ["Dr. Smith left.", "He was tired."]


names = st.lists(st.text("ab- ", min_size=1, max_size=4), min_size=1, max_size=8)


@given(names, names)
def test_joined_words_are_the_sorted_pairs(first, second):
    joined = words.Joined(first, second)
    wanted = sorted({f"{one}-{two}" for one in first for two in second})
    assert list(joined) == joined[:] == wanted
    with pytest.raises(IndexError):
        joined[len(wanted)]


def test_words_of_another_release_are_refused(tmp_path, monkeypatch):
    (tmp_path / "nounlist.txt").write_text("dog\n")
    monkeypatch.setattr(words, "package_files", lambda _: [tmp_path / "nounlist.txt"])
    with refused("eval.tasks", names=words.RELEASE):
        words._listed("nounlist.txt")


def test_lists_beyond_wonderwords_need_rulers_file(tmp_path, monkeypatch):
    assert len(words.all_words()) == 8166
    with refused("eval.lengths", value=300_000):
        words.more_words(tmp_path, 300_000)
    (tmp_path / words.MORE_WORDS).write_text('{"0": "one", "1": "two"}')
    with refused("eval.qa"):
        words.more_words(tmp_path, 300_000)
    digest = hashlib.sha256((tmp_path / words.MORE_WORDS).read_bytes()).hexdigest()
    monkeypatch.setattr(words, "MORE_SHA256", digest)
    assert words.more_words(tmp_path, 300_000) == ["one", "two"]


def test_documents_of_the_same_article_come_first(default_model, questions_folder):
    sample = next(samples(TASKS["qa_1"], default_model.tokenizer, 2048, 42, questions_folder))
    assert sample.outputs == ["Gold 0-0"] * 3
    assert {f"Paragraph 0-{place} has" in sample.input for place in range(5)} == {True}
    assert sample.input.endswith("Question: What is in 0-0? ")


def test_questions_end(default_model, questions_folder):
    made = samples(TASKS["qa_2"], default_model.tokenizer, 4000, 42, questions_folder)
    with refused("eval.samples"):
        list(made)


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"data": [{"paragraphs": 3}]}', '{"data": []}', "null"])
@pytest.mark.parametrize("name", questions.FILES.values())
def test_a_file_that_is_not_of_questions_is_refused(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with refused("eval.qa", value=tmp_path / name):
        questions.read(tmp_path / name)


def test_tasks_are_all_that_files_suffice_for_or_those_that_are_named():
    assert len(TASKS) == 13
    assert [task.name for task in TASKS.values()][-5:] == ["vt", "cwe", "fwe", "qa_1", "qa_2"]
    assert len(select_tasks("all", [])) == 11
    assert [task.name for task in select_tasks("all", ["hotpotqa.json"])][-1] == "qa_2"
    assert [task.name for task in select_tasks(["vt", "cwe", "vt"], [])] == ["vt", "cwe"]
    with refused("eval.qa"):
        select_tasks(["vt", "qa_1"], ["hotpotqa.json"])
    with refused("eval.tasks", value="niah"):
        select_tasks("niah", [])


def test_scores_are_rulers():
    assert score("string_match_all", "the ONE, then two", ["one", "Two", "three", "four"]) == 50
    assert score("string_match_part", "then two", ["one", "two"]) == 100
    assert score("string_match_part", "three", ["one", "two"]) == 0
    # Control characters become line breaks before the two are compared.
    assert score("string_match_all", " a\tb ", ["a\tb"]) == 0
    assert score("string_match_all", " a\tb ", ["a\nb"]) == 100
