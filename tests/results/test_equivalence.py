"""Equivalence within a margin: one-sided tests, their error rates, and how many samples they need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import skew, ttest_1samp, ttest_rel
from scipy.stats import t as student

from evals.cli import main
from evals.longgen.tables import REPEATED
from evals.report.against import against
from evals.results.compare import comparisons
from evals.results.record import records
from evals.tables.compare import Question, verdicts
from evals.tables.equivalence import Margin, below, samples_below, samples_within, within
from evals.tables.statistics import ALPHA, all_differences, difference, effective, mean_difference, weighted_values
from evals.tables.table import Metric
from tests.support.tables import table
from tests.support.trees import line, setting

FINITE = st.floats(-100, 100, allow_nan=False)


def symmetric(values):
    """The values and their mirror images about their mean: no skewness."""
    return np.concatenate([values, 2 * values.mean() - values])


def test_without_skewness_it_is_the_paired_t_test():
    """Schuirmann's two one-sided tests from scipy's paired t-tests."""
    random = np.random.default_rng(0)
    for mean in (0.0, 0.3, -0.6, 2.0):
        second = symmetric(random.normal(mean, 1, 15))
        first = np.zeros_like(second)
        upper = ttest_rel(second, first + 0.8, alternative="less").pvalue
        lower = ttest_rel(second, first - 0.8, alternative="greater").pvalue
        found = difference(first, second, margin=Margin(0.8))
        # No t-test is needed to reject a mean outside of the margin.
        assert found.equivalence == pytest.approx(max(upper, lower) if abs(mean) < 0.8 else 1, rel=1e-9)


@given(values=st.lists(FINITE, min_size=2, max_size=40), limit=st.floats(0.01, 50))
def test_it_is_never_surer_than_a_t_test_nor_than_unseen_values_allow(values, limit):
    row = np.array([values])
    (p,) = below(row, limit, 200.0, len(values))
    assert 0 <= p <= 1
    if row.std() > 1e-3:
        assert p >= ttest_1samp(values, limit, alternative="less").pvalue - 1e-9
    if row.mean() < limit:
        share = (limit - row.mean()) / (200 - row.mean())
        assert p >= (1 - share) ** len(values) - 1e-12


@given(values=st.lists(FINITE, min_size=2, max_size=40), margin=st.floats(0.01, 50))
def test_either_setting_may_come_first(values, margin):
    one = mean_difference([values], margin=Margin(margin, 200.0))
    other = mean_difference([[-value for value in values]], margin=Margin(margin, 200.0))
    assert one.equivalence == pytest.approx(other.equivalence)
    assert one.enough == other.enough


def test_equal_values_are_no_proof_beyond_their_number():
    """With 42 samples, a score may still lose 2 points by rare samples; with 149, no longer at the 5 % level."""
    for n, shown in ((42, False), (148, False), (149, True)):
        found = difference([50.0] * n, [50.0] * n, margin=Margin(2.0, 100.0))
        assert found.equivalence == pytest.approx(0.98**n)
        assert (found.equivalence < ALPHA) == shown
        assert found.enough == 149
    assert difference([1.0], [1.0], margin=Margin(0.02)).equivalence == 1
    assert difference([1.0] * 3, [1.0] * 3, margin=Margin(0.02)).equivalence == 0.125


def test_values_that_are_missed_count():
    """Where 2 % of the samples lose all, 2 points are lost: t says otherwise in 43 % of all draws of 42."""
    random = np.random.default_rng(1)
    for n in (42, 100, 300):
        values = 100.0 * (random.random((2000, n)) < 0.02)
        assert np.mean(below(values, 2.0, 100.0, n) < ALPHA) <= 0.05


@pytest.mark.parametrize("lengths", [(10, 200), (20, 50, 300), (60, 60)])
def test_values_that_are_missed_count_in_tasks_of_unequal_size(lengths):
    """Whatever task the rare losses are in, a mean loss at the limit is certified in at most 5 % of all draws."""
    random = np.random.default_rng(3)
    size = effective(lengths)
    limit = 100 * (1 - ALPHA ** (1 / size)) * 1.05  # sure where no sample loses
    for place in range(len(lengths)):
        shares = [limit / 100 * len(lengths) * (task == place) for task in range(len(lengths))]
        strata = [100.0 * (random.random((2000, n)) < share) for n, share in zip(lengths, shares, strict=True)]
        assert np.mean(below(weighted_values(strata), limit, 100.0, size) < ALPHA) <= 0.05 + 0.01


def test_the_samples_asked_for_are_enough():
    random = np.random.default_rng(4)
    pilot = random.normal(0.1, 1, (1, 4000))
    (n,) = samples_within(pilot, Margin(0.4), 4000, ALPHA)
    assert np.mean(within(random.normal(0.1, 1, (500, n)), Margin(0.4), n) < ALPHA) >= 0.75
    (n,) = samples_below(pilot, 0.4, None, 4000, ALPHA)
    assert 0.72 <= np.mean(below(random.normal(0.1, 1, (500, n)), 0.4, None, n) < ALPHA) <= 0.88
    assert samples_below(pilot, 0.05, None, 4000, ALPHA) == [None]
    assert samples_below(pilot[:, :1], 0.4, None, 4000, ALPHA) == [None]
    assert samples_within(pilot, Margin(0.4), 4000, ALPHA / 10)[0] > samples_within(pilot, Margin(0.4), 4000, ALPHA)[0]


def of_methods(metric, noise, n=400):
    """CompressKV, one with the same mean, and one that differs."""
    random = np.random.default_rng(6)
    base = random.uniform(20, 80, n)
    means = {"CompressKV": 0.0, "SnapKV": 0.0, "CAKE": 8.0}
    return table({method: base + more + random.normal(0, noise, n) for method, more in means.items()}, metric)


def test_few_draws_are_falsely_equivalent():
    draws = np.random.default_rng(2).normal(1, 1, (1000, 30))
    assert np.mean(within(draws, Margin(1.0), 30) < ALPHA) <= 0.065
    assert np.mean(within(draws - 1, Margin(1.0), 30) < ALPHA) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 42, 100, 300])
def test_false_equivalence_and_power_by_simulation(n):
    """2,000 draws each, with means at the margin, at half of it, and at 0."""
    random = np.random.default_rng(n)
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)  # two standard errors of the simulation
    for draw in (
        lambda: random.normal(0, 1, (2000, n)),
        lambda: random.laplace(0, 1, (2000, n)),
        lambda: random.uniform(-1, 1, (2000, n)),
        lambda: random.standard_t(5, (2000, n)),
    ):
        margin = Margin(0.5)
        seen = [np.mean(within(draw() + mean, margin, n) < ALPHA) for mean in (0.5, 0.25, 0.0)]
        assert seen[0] <= limit
        assert seen[0] <= seen[1] + 0.02 <= seen[2] + 0.04
    # A mean that is as skewed as a KL: more errors than 5 %, and fewer than those of t.
    skewed = random.exponential(1, (2000, n))
    errors = np.mean(below(skewed, 1.0, None, n) < ALPHA)
    of_t = np.mean(ttest_1samp(skewed, 1.0, axis=1, alternative="less").pvalue < ALPHA)
    assert errors <= min(0.11, of_t)


def test_all_couples_at_once_equal_one_at_a_time():
    random = np.random.default_rng(5)
    margin = Margin(0.5, 10.0)
    settings = [[random.normal(place / 4, 1, 12).tolist(), random.normal(0, 1, 3).tolist()] for place in range(4)]
    couples = [(one, other) for other in range(4) for one in range(other)]
    for (one, other), found in zip(couples, all_differences(settings, couples, margin), strict=True):
        strata = [np.subtract(after, before) for before, after in zip(settings[one], settings[other], strict=True)]
        alone = mean_difference(strata, len(couples), margin)
        assert (found.equivalence, found.enough) == (pytest.approx(alone.equivalence, abs=1e-12), alone.enough)


def test_equivalence_is_corrected_for_all_comparisons():
    values = np.random.default_rng(0).normal(50, 10, 60)
    near = values + np.random.default_rng(1).normal(0, 5, 60)
    metric = Metric("score", margin=2.0, largest=100.0)
    (alone,) = verdicts(Question(subject="a"), table({"a": values, "b": near}, metric))
    both = verdicts(Question(subject="a"), table({"a": values, "b": near, "c": near}, metric))
    assert 0 < alone.equivalence < 0.5
    assert [each.equivalence for each in both] == pytest.approx([2 * alone.equivalence] * 2)


def test_three_verdicts():
    metric = Metric("score", margin=2.0, largest=100.0)
    close, far = verdicts(Question(), of_methods(metric, 2.0))
    assert (close.outcome, far.outcome) == ("equivalent", "differs")
    noisy, _ = verdicts(Question(), of_methods(metric, 30.0))
    assert noisy.outcome == "undecided"
    assert noisy.needed > 400
    # The user's margin replaces the metric's; without any, nothing can be equivalent, and the difference is the same.
    assert verdicts(Question(margins={"score": 0.1}), of_methods(metric, 2.0))[0].outcome == "undecided"
    plain, _ = verdicts(Question(), of_methods(Metric("score"), 2.0))
    assert (plain.outcome, plain.margin, plain.equivalence) == ("undecided", None, None)
    assert (plain.p, plain.mean, plain.interval) == (close.p, close.mean, close.interval)


def test_the_command_takes_a_margin(tmp_path, capsys):
    for method in ("snapkv", "cake"):
        setting(tmp_path, [(37 * n) % 90 + 0.0 for n in range(20)], method)
    for margin, outcome in (([20.0], "equivalent"), ([], "undecided")):
        (comparison,) = comparisons(records(tmp_path), "score", *margin)
        assert [pair.outcome for pair in comparison.pairs] == [outcome]
    for more in ([], ["--against", "cake"]):
        assert main(["results", "compare", "--margin", "20", "--results", str(tmp_path), *more]) == 0
        assert "equivalent within 20" in capsys.readouterr().out


def test_an_evaluation_defines_its_metric_once(tmp_path):
    """Repeated 8-grams have the margin and the direction of their table; a field without a table has neither."""
    for method, more in (("compresskv", 0.0), ("snapkv", 30.0)):
        lines = [
            line(str(n), 50.0, kind="story", repeated_8grams=n % 7 + more, new_field=n % 7 + more) for n in range(40)
        ]
        setting(tmp_path, lines, method, eval="longgen", task="longgen")
    found = {
        field: against(records(tmp_path), field, "compresskv")[-1][1][0] for field in ("repeated_8grams", "new_field")
    }
    own, other = found["repeated_8grams"], found["new_field"]
    assert (own.margin, own.lower, own.ordered) == (REPEATED.margin, True, ("SnapKV", "CompressKV"))
    assert (other.margin, other.lower) == (None, False)
    assert own.shown
    assert own.finding != other.finding
    (comparison,) = comparisons(records(tmp_path), "repeated_8grams")
    assert comparison.margin == REPEATED.margin


@pytest.mark.parametrize("given", ["compare 0", "compare -1", "compare nan", "compare inf", "list 1"])
def test_compare_alone_takes_a_margin_above_0(tmp_path, capsys, given):
    setting(tmp_path)
    command, margin = given.split()
    assert main(["results", command, f"--margin={margin}", "--results", str(tmp_path)]) == 2
    assert "--margin" in capsys.readouterr().err


def test_the_samples_that_decide_count_all_comparisons_and_both_sides():
    values = np.random.default_rng(4).normal(0, 1, (1, 40))
    zeros = [0.0] * 40
    one, hundred = (difference(zeros, values[0] + 9, number, Margin(1.0)) for number in (1, 100))
    assert (one.needed, hundred.needed) == (6, 12)  # of 2^n signs, 2 give a p-value as small as this
    near, far = (difference(zeros, values[0], number, Margin(1.0)).enough for number in (1, 100))
    assert (near, far) == tuple(samples_within(values, Margin(1.0), 40, ALPHA / number)[0] for number in (1, 100))
    assert near < far
    assert samples_below(np.abs(values.mean()) + values - values.mean(), 1.0, None, 40, ALPHA)[0] < near


def test_a_skewed_sample_has_the_p_value_of_halls_transformation():
    """P. Hall, "On the removal of skewness by transformation", JRSS B 54, 1992."""
    values = np.random.default_rng(6).exponential(1, 20)
    u, g = (values.mean() - 1.6) / values.std(ddof=1), skew(values)
    symmetric = np.sqrt(20) * (u + g * u**2 / 3 + g**2 * u**3 / 27 + g / (6 * 20))
    (p,) = below(values[None], 1.6, None, 20)
    assert p == pytest.approx(student.cdf(symmetric, 19))
    assert p > 2 * ttest_1samp(values, 1.6, alternative="less").pvalue
