"""Certified budgets: `python -m evals results certify`."""

import numpy as np
import pytest

from compresskv.budget import budget_from
from evals.report.against import certified
from evals.results.__main__ import main
from evals.results.record import records
from evals.tables import text
from evals.tables.certify import certificates
from evals.tables.equivalence import below
from evals.tables.methods import Name
from evals.tables.table import KNOWN, SCORE, Cell, Row, full_of
from tests.support.refusals import assert_sentence
from tests.support.tables import table
from tests.support.trees import line, setting


def losing(losses, metric=SCORE, full=90.0, **names):
    """SnapKV at budgets with these losses per sample, beside the full cache."""
    n = len(next(iter(losses.values())))
    sign = -1 if metric.better == "higher" else 1
    rows = {Name("SnapKV", budget, **names): full + sign * np.asarray(lost) for budget, lost in losses.items()}
    return table({Name("FullKV"): [full] * n, **rows}, metric)


def noise(mean, n=400, spread=3.0, seed=0):
    values = np.random.default_rng(seed).normal(0, 1, n)
    return mean + spread * (values - values.mean())


@pytest.mark.parametrize(("metric", "full"), [(SCORE, 90.0), (KNOWN["kl"], 0.0)])
def test_the_smallest_safe_budget(metric, full):
    losses = {64: noise(9.0), 256: noise(0.5), 128: noise(1.0), 32: noise(0.1)}
    (found,) = certificates(losing(losses, metric, full), 2.0, 0.95)
    assert [(each.budget, each.safe) for each in found.tried] == [(256, True), (128, True), (64, False)]
    assert found.smallest.budget == 128
    assert found.smallest.loss == pytest.approx(1.0)
    assert 1.0 < found.smallest.bound < 2.0
    assert found.failed.needed is None
    # 32 is not tried: a larger one failed.


def test_tokens_and_shares_have_a_certificate_each():
    quarter, half, most = (budget_from(f"{percent}%") for percent in (25, 50, 75))
    losses = {256: noise(0.5), 64: noise(9.0), most: noise(0.5), half: noise(0.6), quarter: noise(9.0)}
    tokens, shares = certificates(losing(losses), 2.0, 0.95)
    assert [each.budget for each in tokens.tried] == [256, 64]
    assert [each.budget for each in shares.tried] == [most, half, quarter]
    assert (tokens.smallest.budget, shares.smallest.budget) == (256, half)


def test_the_bound_is_where_the_test_turns():
    lost = noise(0.5, 60)
    (found,) = certificates(losing({64: lost}), 50.0, 0.9)
    for more, sure in ((1.001, True), (0.999, False)):
        assert (below(lost[None], found.tried[0].bound * more, 100.0, 60)[0] < 0.1) == sure


def test_what_is_not_certified_says_how_many_samples_would_do():
    (found,) = certificates(losing({64: noise(1.0, 42, 5.0)}), 2.0, 0.95)
    assert found.smallest is None
    enough = found.failed.needed
    assert enough > 149  # with fewer, one sample in 50 that loses all may be missed
    (found,) = certificates(losing({64: noise(1.0, enough, 5.0)}), 2.0, 0.95)
    assert found.smallest.budget == 64


def test_one_sample_is_not_said_to_be_hopeless():
    few, far = (next(certificates(losing({64: [lost] * n}), 2.0, 0.95)).failed for lost, n in ((0.0, 1), (9.0, 40)))
    assert few.needed is far.needed is None
    of_one, of_many = (text.certificate("SnapKV", None, failed)[-1].split(", ")[1] for failed in (few, far))
    assert of_one != of_many


def test_a_full_cache_of_other_samples_certifies_nothing():
    shown = losing({64: noise(0.0)})
    shown.rows[0] = Row(Name("FullKV"), {"average": Cell({"task": {("0", "another prompt"): 90.0}}, 1)})
    for none in (shown, losing({64: noise(0.0)}, when="context")):
        assert list(certificates(none, 2.0, 0.95)) == []


@pytest.mark.parametrize("when", ["prompt", "context"])
def test_evictions_while_decoding_are_measured_against_the_same_full_cache(when):
    """`Record.when` of the full cache has no `+decode`."""
    shown = losing({64: noise(0.0)}, when=f"{when}+decode")
    shown.rows[0] = Row(Name("FullKV", when=when), shown.rows[0].cells)
    assert full_of(shown.rows[1], shown.rows[:1]) is shown.rows[0]
    (found,) = certificates(shown, 2.0, 0.95)
    assert found.smallest.budget == 64


@pytest.mark.slow
def test_false_certificates_are_as_rare_as_the_confidence_says():
    """2,000 draws of five budgets, of which the three smallest lose exactly the limit or more."""
    random = np.random.default_rng(1)
    means = {512: 0.2, 256: 1.0, 128: 2.0, 64: 2.0, 32: 3.0}
    wrong = 0
    for _ in range(2000):
        losses = {budget: random.normal(mean, 4, 160) for budget, mean in means.items()}
        (found,) = certificates(losing(losses), 2.0, 0.95)
        wrong += found.smallest is not None and found.smallest.budget <= 128
    assert wrong / 2000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def test_the_command(tmp_path, capsys):
    for method, budget, score in (("full", None, 90.0), ("snapkv", 64, 30.0), ("snapkv", 128, 90.0)):
        setting(tmp_path, [score] * 12, method, budget)
    assert main(["certify", "--loss", "30", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "SnapKV" in shown
    assert "64 at n = 12" in shown


def test_a_certificate_is_of_one_configuration(tmp_path):
    """Nine heads at the largest budget say nothing about one head at the smaller ones."""
    setting(tmp_path, [90.0] * 40, method="full", budget=None)
    for budget, heads in ((256, 9), (128, 1), (64, 1)):
        node = {"name": "compresskv", "scorer": {"_target_": "compresskv.semantic_heads.scorer", "heads": heads}}
        setting(tmp_path, [89.0] * 40, "compresskv", budget, node=node)
    found, notes = certified(records(tmp_path), "score", 20.0)
    assert notes == []
    nine, one = sorted(found, key=lambda each: len(each.tried))
    assert [each.budget for each in nine.tried] == [256]
    assert [each.budget for each in one.tried] == [128, 64]
    assert nine.method != one.method


def test_settings_without_a_full_cache_of_their_samples_are_named(tmp_path):
    """The largest budget read other prompts: the others are certified, and it is named."""
    setting(tmp_path, [90.0] * 40, method="full", budget=None)
    for budget, prompt in ((256, "other"), (128, "prompt")):
        lines = [line(str(n), 89.0, budget, prompt_sha256=f"{prompt} {n}") for n in range(40)]
        setting(tmp_path, lines, "snapkv", budget)
    (found,), notes = certified(records(tmp_path), "score", 20.0)
    assert [each.budget for each in found.tried] == [128]
    assert any("SnapKV 256" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (["--loss=0"], "--loss"),
        (["--loss=nan"], "--loss"),
        ([], "--loss"),
        (["--loss=2", "--metric=prediction"], "--metric"),
        (["--loss=2", "--metric=kl"], "--metric"),  # no line has it
        (["--loss=2", "--confidence=0.5"], "--confidence"),
        (["--loss=2", "--confidence=1"], "--confidence"),
        (["--loss=2", "--margin=2"], "--margin"),
    ],
)
def test_what_cannot_be_certified_is_refused(tmp_path, capsys, given, field):
    setting(tmp_path, [90.0] * 3, method="full", budget=None)
    setting(tmp_path, [80.0] * 3)
    assert main(["certify", *given, "--results", str(tmp_path)]) == 2
    assert_sentence(capsys.readouterr().err.strip(), field)
