"""Intervals, paired tests and their corrections."""

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp

from evals.tables.equivalence import Margin
from evals.tables.statistics import (
    EXACT,
    MOST_GROUPS,
    all_differences,
    difference,
    groups,
    holm,
    interval,
    mean_difference,
)


def permutation_p(values, comparisons=1):
    return mean_difference([values], comparisons).p


def samples_needed(values, comparisons=1):
    return mean_difference([values], comparisons).needed


def test_intervals():
    low, high = interval([0.0, 100.0] * 50)
    assert 35 < low < 45
    assert 55 < high < 65
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])
    assert interval([50.0, 50.0]) == (50.0, 50.0)


@pytest.mark.parametrize("strata", [[[50.0]], [[50.0, 60.0], [50.0]], [[]], []])
def test_one_sample_has_no_interval(strata):
    assert interval(*strata) is None


def test_the_mean_over_strata_weighs_them_equally():
    """By theory: the variance of a mean over strata is the sum of the strata's, over their number squared."""
    random = np.random.default_rng(1)
    many, few = random.normal(10, 5, 2000), random.normal(50, 5, 50)
    low, high = interval(many.tolist(), few.tolist())
    error = np.sqrt(many.var() / 2000 + few.var() / 50) / 2
    assert (low + high) / 2 == pytest.approx((many.mean() + few.mean()) / 2, abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_strata_are_drawn_apart():
    """Two equal tasks: with the same draws, their mean would vary as much as a single task."""
    values = np.random.default_rng(2).normal(0, 1, 100).tolist()
    alone, both = interval(values), interval(values, values)
    assert (both[1] - both[0]) / (alone[1] - alone[0]) == pytest.approx(1 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_small_samples_are_tested_exactly(n):
    """Against all 2^n signs, written out."""
    values = np.random.default_rng(n).normal(0.5, 1, n)
    sums = [abs(sum(v if mask >> i & 1 else -v for i, v in enumerate(values))) for mask in range(2**n)]
    expected = np.mean([total >= abs(values.sum()) - 1e-9 for total in sums])
    assert permutation_p(values) == pytest.approx(expected)
    assert permutation_p([*values, 0.0, 0.0]) == pytest.approx(expected)


def test_large_samples_agree_with_scipy():
    def mean(x, axis):
        return x.mean(axis)

    for shift in (0.0, 0.1, 0.3):
        values = np.random.default_rng(4).normal(shift, 1, EXACT + 40)
        test = permutation_test((values,), mean, permutation_type="samples", n_resamples=9999, rng=5)
        assert permutation_p(values) == pytest.approx(test.pvalue, abs=0.02)
        assert permutation_p(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.03)


def test_equal_settings_do_not_differ():
    same = difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.p, same.interval, same.needed) == (0.0, 1.0, (0.0, 0.0), None)


def test_p_values_are_small_enough_for_their_correction():
    values = np.full(60, 1.0)
    assert 1000 * permutation_p(values, 1000) < 0.05


def test_differences_are_paired():
    """One setting is better by 1 on samples of very different difficulty, which only a paired test shows."""
    random = np.random.default_rng(6)
    first = random.uniform(0, 100, 30)
    second = first + random.normal(1, 0.5, 30)
    result = difference(first.tolist(), second.tolist())
    assert result.mean == pytest.approx(1, abs=0.3)
    assert result.interval[0] > 0
    assert result.p < 0.001
    assert result.needed <= 10
    swapped = difference(second.tolist(), first.tolist())
    assert (swapped.mean, swapped.p) == (-result.mean, result.p)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, 0.001], 10) == pytest.approx([0.09, 0.01])
    assert holm([]) == []


def pairs(*names):
    return {frozenset(name) for name in names}


def test_groups_that_cannot_be_told_apart():
    assert groups("abc", pairs()) == [["a", "b", "c"]]
    assert groups("abc", pairs("ab", "ac", "bc")) == [["a"], ["b"], ["c"]]
    assert groups("abc", pairs("ac")) == [["a", "b"], ["b", "c"]]
    assert groups("abcd", pairs("ac", "ad", "bd")) == [["a", "b"], ["b", "c"], ["c", "d"]]


def test_groups_are_all_the_largest_ones():
    """Against every subset, for random relations."""
    random = np.random.default_rng(7)
    for _ in range(30):
        names = list(range(6))
        differing = {frozenset((i, j)) for i in names for j in names if i < j and random.random() < 0.4}
        free = [
            {name for name in names if mask >> name & 1}
            for mask in range(1, 64)
            if not any(pair <= {name for name in names if mask >> name & 1} for pair in differing)
        ]
        largest = [subset for subset in free if not any(subset < other for other in free)]
        assert sorted(map(sorted, groups(names, differing))) == sorted(map(sorted, largest))


def test_samples_needed_are_enough():
    """With this n, about 80 % of paired tests find the difference."""
    random = np.random.default_rng(8)
    pilot = random.normal(0.5, 1, 2000)
    n = samples_needed(pilot)
    assert 25 <= n <= 40  # 32 by the textbook
    seen = sum(ttest_1samp(random.normal(0.5, 1, n), 0).pvalue < 0.05 for _ in range(400))
    assert 0.72 <= seen / 400 <= 0.88
    assert samples_needed(pilot, comparisons=10) > n
    assert samples_needed([1.0]) is None


@pytest.mark.parametrize("values", [[0.1, 0.2, -0.3], [66.6667 - 33.3333, -33.3333, -0.0]])
def test_differences_that_cancel_but_for_rounding_need_no_number_of_samples(values):
    assert sum(values) != 0
    assert samples_needed(values) is None


@pytest.mark.parametrize("margin", [None, Margin(0.5, 10.0)])
@pytest.mark.parametrize("n", [1, 6, 40])
def test_all_couples_at_once_equal_one_at_a_time(n, margin):
    random = np.random.default_rng(n)
    settings = [[random.normal(place / 4, 1, n).tolist(), random.normal(0, 1, n).tolist()] for place in range(5)]
    settings.append(settings[0])
    couples = [(one, other) for other in range(6) for one in range(other)]
    for (one, other), found in zip(couples, all_differences(settings, couples, margin), strict=True):
        strata = [np.subtract(after, before) for before, after in zip(settings[one], settings[other], strict=True)]
        alone = mean_difference(strata, len(couples), margin)
        assert (found.n, found.needed, found.p) == (alone.n, alone.needed, pytest.approx(alone.p, abs=1e-9))
        assert found.mean == pytest.approx(alone.mean, abs=1e-12)
        assert found.interval == (alone.interval and pytest.approx(alone.interval, abs=1e-12))
        assert (found.equivalence, found.enough) == (
            alone.equivalence and pytest.approx(alone.equivalence, abs=1e-12),
            alone.enough,
        )


def test_many_comparisons_stop_early_without_another_answer():
    random = np.random.default_rng(9)
    for shift in (0.0, 0.2, 0.4, 2.0):
        values = random.normal(shift, 1, 60)
        few, many = permutation_p(values), permutation_p(values, 2000)
        assert many == pytest.approx(few, rel=0.15, abs=3e-4)


def test_two_hundred_settings_have_groups_in_no_time():
    """Two settings share a group if and only if they do not differ, for any relation."""
    random = np.random.default_rng(10)
    places = random.normal(0, 2, 200)
    differing = pairs(
        *((i, j) for i in range(200) for j in range(i) if abs(places[i] - places[j] + random.normal()) > 2)
    )
    found = groups(list(range(200)), differing)
    assert len(found) > MOST_GROUPS
    together = {frozenset((i, j)) for group in found for i in group for j in group if i < j}
    assert together == {frozenset((i, j)) for i in range(200) for j in range(i)} - differing


def test_the_smallest_p_of_drawn_signs_is_not_0():
    better = [1 + place / 100 for place in range(40)]
    assert mean_difference([better]).p == pytest.approx(1 / 10_000)  # the observed signs count as a draw
