"""Metrics: edge cases worked out by hand, and parity with the libraries on generated text."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.longbench.metrics import METRICS, ratio, score_sample
from evals.longbench.rouge_l import RECURSION_DEPTH, rouge_l
from evals.longbench.tasks import ALL, TASKS
from tests.support.refusals import refused

PERFECT = pytest.approx(1.0, abs=1e-6)  # ROUGE-L's 1e-8 keeps it just below 1
CLASSES = ["Animal", "Animal name", "name", "Color"]


@pytest.mark.parametrize("name", ALL)
def test_the_reference_as_prediction_is_perfect_and_nothing_scores_nothing(name, records):
    record = records[name]
    answer = record.answers[0]
    # "Animal name" names the class "Animal" too, but that is part of the reference and does not count
    assert score_sample(TASKS[name], answer, record.answers, record.all_classes).score == PERFECT
    assert score_sample(TASKS[name], "", record.answers, record.all_classes).score == 0.0


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        ("qa_f1", "The Cat, sat!", "cat", 2 / 3),  # {cat, sat} against {cat}
        ("qa_f1", "cat cat", "cat cat cat", 0.8),  # a multiset: p 1, r 2/3
        ("qa_f1", "a an the", "the", 0.0),  # nothing is left of either
        ("qa_f1", "...!?", "cat", 0.0),
        ("qa_f1", "猫 垫子", "猫", 2 / 3),  # no ASCII: words are split at white space
        ("qa_f1", "it's", "its", 1.0),
        ("qa_f1_zh", "猫。", "猫", 1.0),
        ("qa_f1_zh", "！？。", "猫", 0.0),
        ("qa_f1_zh", "《猫》", "猫", 2 / 3),  # "》" is dropped, "《" is not: the official list lacks it
        ("qa_f1_zh", "CAT", "cat", 1.0),
        ("count", "3 or 4, 3", "3", 2 / 3),
        ("count", "three", "3", 0.0),
        ("count", "03", "3", 0.0),  # text is compared, not numbers
        ("retrieval", "Paragraph 12 or 1", "Paragraph 12", 0.5),
        ("retrieval_zh", "段落2", "段落2", 1.0),
        ("retrieval_zh", "", "段落2", 0.0),
        ("code_similarity", "\n\n# comment\n`x`\n// y\nreturn x\nreturn y", "return x", 1.0),
        ("code_similarity", "# only a comment", "return x", 0.0),
        ("code_similarity", "abcd", "bcde", 0.75),
        ("rouge_l", "", "cat", 0.0),
        ("rouge_l", "...", "cat", 0.0),
        ("rouge_l", " ", "cat", 0.0),
        ("rouge_l", "cat", "", 0.0),
        ("rouge_l", "the cat sat", "the cat ran", 2 / 3),
        ("rouge_l", "b a", "a b", 0.5),  # the LCS has one word
        ("rouge_l", "b. a", "a b", 1.0),  # two sentences: their LCSs are united
        ("rouge_l", "cat cat cat", "cat", 1.0),  # words count once
        ("rouge_l", "cat\n\tsat", "cat sat", 1.0),
        ("rouge_l_zh", "猫在垫子上", "猫在垫子上", 1.0),
        ("rouge_l_zh", "", "猫", 0.0),
    ],
)
def test_by_hand(metric, prediction, reference, expected):
    assert METRICS[metric](prediction, reference, None) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "classes", "expected"),
    [
        ("an Animal", "Animal", CLASSES, 1.0),
        ("Animal name", "Animal", CLASSES, 1 / 3),  # longer names that contain the reference stay
        ("Color Animal", "Animal", CLASSES, 1 / 2),
        # "Animal" is removed, which makes the loop skip "Animal name"; then "name" is removed
        ("Animal name", "Animal name", CLASSES, 1.0),
        # two neighbours to remove: the second one is skipped, and stays
        ("ab c", "ab c", ["a", "b", "ab c"], 1 / 2),
        ("nothing", "Animal", CLASSES, 0.0),
        ("", "Animal", CLASSES, 0.0),
    ],
)
def test_classification(prediction, reference, classes, expected):
    assert METRICS["classification"](prediction, reference, classes) == expected


def test_missing_classes_and_unnumbered_paragraph_are_refused():
    with refused("all_classes"):
        score_sample(TASKS["trec"], "Animal", ["Animal"])
    with refused("answers", value="the second"):
        score_sample(TASKS["passage_retrieval_en"], "2", ["the second"])


def library_rouge_l(prediction, reference):
    from rouge import Rouge

    return Rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]


@pytest.mark.parametrize("words", [RECURSION_DEPTH - 2, RECURSION_DEPTH - 1, 1200])
def test_rouge_l_of_a_pair_too_long_for_the_library(words):
    prediction, reference = " ".join(f"w{i}" for i in range(words)), "cat"
    result = rouge_l(prediction, reference)
    assert result.overflow == (words + 1 >= RECURSION_DEPTH)
    if words == 1200:
        with pytest.raises(RecursionError):
            library_rouge_l(prediction, reference)
    shared_end = rouge_l(prediction + " cat", reference)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        assert result.f == library_rouge_l(prediction, reference)
        assert shared_end.f == library_rouge_l(prediction + " cat", reference)
    finally:
        sys.setrecursionlimit(limit)
    assert not shared_end.overflow  # a match at the end leaves nothing to backtrack


def test_overflow_reaches_the_sample_score_with_what_the_official_evaluation_gives():
    long = " ".join(f"w{i}" for i in range(1200))
    sample = score_sample(TASKS["qmsum"], long, ["w0 x", "w0"])
    assert sample.overflow
    assert sample.score > 0
    assert sample.official == 0.0
    assert score_sample(TASKS["qmsum"], "w0", ["w0"]).overflow is False


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "the", ".", " ", "\n", ". "]), max_size=40).map(" ".join)
letters = st.text(alphabet="ab c(.)_", max_size=60)
long_letters = st.text(alphabet="abcdefghij klm", min_size=150, max_size=260)
any_text = st.text(max_size=40)


@settings(max_examples=100, deadline=None)
@given(words | any_text, words | any_text)
def test_rouge_l_equals_the_library(prediction, reference):
    try:
        expected = library_rouge_l(prediction, reference)
    except ValueError:  # no sentence in one of them
        expected = 0.0
    assert rouge_l(prediction, reference).f == expected


@settings(max_examples=150, deadline=None)
@given(letters | long_letters | any_text, letters | long_letters | any_text)
def test_ratio_equals_the_library(a, b):
    from fuzzywuzzy import fuzz

    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("python-Levenshtein is installed: fuzzywuzzy gives other values")
    assert ratio(a, b) == fuzz.ratio(a, b)


classes = st.lists(st.sampled_from(["a", "b", "ab", "abc", "c", "bc"]), max_size=6)
numbers = st.text(alphabet="123 ٣a", max_size=12)


@settings(max_examples=80, deadline=None)
@given(words | any_text, words | any_text, numbers, st.integers(0, 99), classes, st.text(alphabet="abc ", max_size=8))
def test_the_other_metrics_equal_the_plain_reference(reference, text, other, digits, number, names, label):
    assert METRICS["qa_f1"](text, other, None) == reference.qa_f1(text, other, [])
    assert METRICS["count"](digits, str(number), None) == reference.count(digits, str(number), [])
    gold = f"Paragraph {number}"
    assert METRICS["retrieval"](digits, gold, None) == reference.retrieval(digits, gold, [])
    for gold in ("a", "ab", "abc"):
        assert METRICS["classification"](label, gold, names) == reference.classification(label, gold, names)
    assert METRICS["code_similarity"](text, other, None) == reference.code_similarity(text, other, [])


chinese = st.text(alphabet="我们在北京大学学习，《猫》坐垫子上。！？ Cat12", max_size=30)


@settings(max_examples=50, deadline=None)
@given(chinese, chinese)
def test_the_chinese_metrics_equal_the_plain_reference(reference, prediction, gold):
    assert METRICS["qa_f1_zh"](prediction, gold, None) == reference.qa_f1_zh(prediction, gold, [])
    assert METRICS["rouge_l_zh"](prediction, gold, None) == reference.rouge_zh(prediction, gold, [])
