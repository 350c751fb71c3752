"""Test whether a mean is below a limit or within a margin of 0. Equivalence and certified budgets use these tests.

Differences between caches are skewed: most samples lose nothing, and a few lose much. A paired t-test then rejects too
often. A test of random signs also rejects too often, because values around a margin are not symmetric. With 42 values
from a lognormal distribution (σ = 1), both reject the true mean in 14 % of all draws at the 5 % level. If 2 % of all
values are 100 and the others 0, they reject it in 43 %. So `below` takes the largest of three p-values:

- **Student:** the one-sided t-test.
- **Hall:** the same after a transformation that removes the skewness of t (P. Hall, "On the removal of skewness by
  transformation", JRSS B 54, 1992; for one-sided bounds, X.-H. Zhou and S. Gao, The American Statistician 54, 2000).
  The 14 % above become 9 %. A studentised bootstrap has the same error, and also depends on random draws.
- **Unseen values:** the probability of missing all rare values, if these values raise the mean to the limit. If one
sample in 50 loses all 100 points, the mean loses 2, and 42 samples miss it with a probability of 0.98^42 = 0.43. No
valid test of a bounded mean has a smaller p-value. For a metric without a largest value, no test is valid without
assumptions (R. Bahadur and L. Savage, Annals of Mathematical Statistics 27, 1956). The test then assumes that the
samples show the tail of the distribution, but its p-value is never below 0.5^n for n samples.

Hoeffding's bound and an empirical Bernstein bound need no assumption on bounded values, but too many samples: 15,000
and 2,100 for a mean of 0 with a spread of 20 points to be below 2 points, where `below` needs 274.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compresskv.errors import UserError

POWER = 0.8
"""Probability with which the reported number of samples decides."""

MOST = 10**9
"""Larger numbers of samples are not reported."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Margin:
    """Means whose difference is less than `within`, in the metric's unit, are equivalent.

    `largest`: the largest difference of two values of the metric; None if it has no limit.
    """

    within: float
    largest: float | None = None


def checked_margin(option: str, value: float) -> float:
    """Return `value` as a margin or a loss. Raises `UserError` unless it is a number above 0."""
    if not (0 < value < math.inf):
        raise UserError(option, "give a number above 0, in the unit of the metric", value=value, why="not a margin")
    return value


@dataclass(frozen=True)
class Moments:
    """What the test needs for rows of n values: their means, standard deviations (over n) and skewness, [rows] each.

    `size`: the number of independent samples that the n values count for; it is smaller than n for weighted values.
    """

    mean: Values
    deviation: Values
    skewness: Values
    n: Values | int
    size: Values | float


def moments(values: Values, limit: float, size: float) -> Moments:
    """Return the moments of `values` [rows, n]. Deviations as small as rounding makes them are 0."""
    mean, deviation = values.mean(1), values.std(1)
    varied = deviation > 1e-9 * np.abs(values).max(1, initial=limit)
    deviation = np.where(varied, deviation, 0)
    standardised = (values - mean[:, None]) / np.where(varied, deviation, 1)[:, None]
    skewness = np.where(varied, (standardised**3).mean(1), 0)
    return Moments(mean, deviation, skewness, values.shape[1], size)


def p_below(sample: Moments, limit: float, largest: float | None) -> Values:
    """Return p-values [rows] of the hypotheses that the mean is `limit` or more, as the module describes."""
    from scipy.special import stdtr  # Student's t: its cumulative distribution

    n, skewness = sample.n, sample.skewness
    varied = sample.deviation > 0
    distance = (sample.mean - limit) / np.where(varied, sample.deviation, 1)
    student = stdtr(n - 1, distance * np.sqrt(n - 1))
    u = distance * np.sqrt((n - 1) / n)
    symmetric = u + skewness * u**2 / 3 + skewness**2 * u**3 / 27 + skewness / (6 * n)
    hall = stdtr(n - 1, symmetric * np.sqrt(n))
    shown = np.where(varied, np.maximum(student, hall), sample.mean >= limit)

    if largest is None:
        missed = np.where(sample.mean < limit, 0.5, 1.0)
    else:  # the share of rare values that would raise the mean to the limit
        share = (limit - sample.mean) / np.maximum(largest - sample.mean, 1e-12)
        missed = 1 - share.clip(0, 1)
    return np.maximum(shown, missed**sample.size)


def below(values: Values, limit: float, largest: float | None, size: float) -> Values:
    """Return p-values [rows] of the hypotheses that the mean of a row of `values` [rows, n] is `limit` or more.

    `largest`: the largest possible value; None without a limit. `size`: how many independent samples the values count
    for, if they are weighted. A single value has no spread, and its p-value is 1.
    """
    return np.ones(len(values)) if values.shape[1] < 2 else p_below(moments(values, limit, size), limit, largest)


def within(values: Values, margin: Margin, size: float) -> Values:
    """Return p-values [rows] of the hypotheses that the mean of a row of `values` [rows, n] is outside the margin.

    Two one-sided tests (D. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
    """
    each = (below(signed, margin.within, margin.largest, size) for signed in (values, -values))
    return np.maximum(*each)


def upper_bound(values: Values, largest: float | None, size: float, alpha: float) -> float:
    """Return the smallest limit that `below` accepts at level `alpha` for `values` [n]; infinity if it accepts no
    limit."""

    def accepts(limit: float) -> bool:
        return bool(below(values[None], limit, largest, size)[0] < alpha)

    low = float(values.mean())
    high = largest if largest is not None else low + 1000 * float(np.abs(values).max(initial=1e-9))
    if not accepts(high):
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def samples_below(
    values: Values, limit: float, largest: float | None, size: float, alpha: float, sides: int = 1
) -> list[int | None]:
    """Return the number of samples with which `below` accepts each row's limit with probability `POWER`, at level
    `alpha`.

    The number is found with the test itself, for the spread and skewness of `values` [rows, n] and a mean that is worse
    by z(power) standard errors, or by z((1 + power) / 2) if both `sides` must be shown. None if the mean is not below
    the limit, if more than `MOST` samples would be needed, and for single values, which have no spread.
    """
    if values.shape[1] < 2:
        return [None] * len(values)
    from scipy.special import ndtri

    pilot = moments(values, limit, size)
    z = float(ndtri(1 - (1 - POWER) / sides))

    def accepted(n: Values) -> NDArray[np.bool_]:
        worse = pilot.mean + z * pilot.deviation / np.sqrt(n - 1)
        return p_below(replace(pilot, mean=worse, n=n, size=pilot.size / pilot.n * n), limit, largest) < alpha

    low, high = np.ones(len(values)), np.full(len(values), float(MOST))
    possible = accepted(high)
    while (high - low > 1).any():
        middle = np.maximum(np.floor((low + high) / 2), 2)
        enough = accepted(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return [int(n) if found else None for n, found in zip(high, possible, strict=True)]


def samples_within(values: Values, margin: Margin, size: float, alpha: float) -> list[int | None]:
    """Return the number of samples with which `within` accepts each row's margin with probability `POWER` or more."""
    worse = np.where(values.mean(1) < 0, -1.0, 1.0)[:, None] * values
    return samples_below(worse, margin.within, margin.largest, size, alpha, sides=2)
