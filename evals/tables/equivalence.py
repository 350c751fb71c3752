"""Whether a mean is below a limit, or within a margin of 0: what equivalence and certified budgets rest on.

Differences between caches are skewed: most samples lose nothing, and a few lose much. A paired t-test then claims too
much. So does a test of random signs, because values around a margin are not symmetric. Both find the mean of 42 values
from a lognormal distribution (σ = 1) to be below itself in 14 % of all draws at the 5 % level. Where 2 % of all values
are 100 and the others 0, they do so in 43 %. So `below` takes the largest of three p-values:

- that of the one-sided t-test;
- the same after Hall's transformation, which removes the skewness of t (P. Hall, "On the removal of skewness by
  transformation", JRSS B 54, 1992; for one-sided bounds, X.-H. Zhou and S. Gao, The American Statistician 54, 2000).
  The 14 % above become 9 %. A studentised bootstrap has the same error, and random draws;
- the chance of seeing none of the rare values that would put the mean at the limit. If one sample in 50 loses all 100
  points, the mean loses 2, and 42 samples miss it with a probability of 0.98^42 = 0.43. No valid test of a bounded mean
  has a smaller p-value. For a metric without a largest value, no test is valid without assumptions (R. Bahadur and L.
  Savage, Annals of Mathematical Statistics 27, 1956). Its tail is then taken to be as the samples show it, and n
  samples never count for more than n tosses of a coin, 0.5^n.

Hoeffding's bound and an empirical Bernstein bound need no assumption on bounded values, but too many samples: 15,000
and 2,100 for a mean of 0 with a spread of 20 points to be below 2 points, where `below` needs 274.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compresskv.errors import UserError

POWER = 0.8
"""How probable it is that the number of samples that a sentence asks for decides."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Margin:
    """Means whose difference is less than `within`, in the metric's unit, are equivalent.

    `largest`: the largest difference of two values of the metric; None where it has no limit.
    """

    within: float
    largest: float | None = None


def checked_margin(option: str, value: float) -> float:
    """`value` as a margin or a loss. Raises `UserError` unless it is a number above 0."""
    if not (0 < value < math.inf):
        raise UserError(option, "give a number above 0, in the unit of the metric", value=value, why="not a margin")
    return value


def below(values: Values, limit: float, largest: float | None, size: float) -> Values:
    """p-values [rows] of the hypotheses that the mean of a row of `values` [rows, n] is `limit` or more.

    `largest`: no value can be above it; None where there is no limit. `size`: how many independent samples the values
    stand for, where they are weighted.
    """
    n = values.shape[1]
    means = values.mean(1)
    if n < 2:
        return np.ones(len(values))
    from scipy.special import stdtr

    spreads, centred = values.std(1), values - means[:, None]
    varied = spreads > 1e-9 * np.abs(values).max(1, initial=0)
    safe = np.where(varied, spreads, 1)
    skewness = np.where(varied, (centred**3).mean(1) / safe**3, 0)
    distances = (means - limit) / safe  # t is this times √(n − 1)
    u = distances * math.sqrt((n - 1) / n)
    removed = u + skewness * u**2 / 3 + skewness**2 * u**3 / 27 + skewness / (6 * n)
    tests = np.maximum(stdtr(n - 1, distances * math.sqrt(n - 1)), stdtr(n - 1, removed * math.sqrt(n)))
    tests = np.where(varied, tests, np.where(means < limit, 0, 1))
    return np.maximum(tests, _unseen(means, limit, largest) ** size)


def within(values: Values, margin: Margin, size: float) -> Values:
    """p-values [rows] of the hypotheses that the mean of a row of `values` [rows, n] is not within the margin of 0.

    Two one-sided tests (D. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
    """
    each = (below(signed, margin.within, margin.largest, size) for signed in (values, -values))
    return np.maximum(*each)


def _unseen(means: Values, limit: float, largest: float | None) -> Values:
    """How probable a sample is none of the rare `largest` ones that would lift a mean to the limit; 1 above it."""
    if largest is None:
        return np.where(means < limit, 0.5, 1.0)
    share = (limit - means) / np.maximum(largest - means, 1e-12)
    return 1 - share.clip(0, 1)


def samples_below(
    values: Values, limit: float, largest: float | None, alpha: float, sides: int = 1
) -> list[int | None]:
    """Samples with which `below` finds each row's mean below the limit with probability `POWER`, at level `alpha`.

    By the normal approximation, n = ((z(1 − α) + z(1 − (1 − power) / sides)) · sd / (limit − mean))², if mean and
    spread are as in `values` [rows, n]; and enough to see rare values (`below`). None where the mean is not below the
    limit, or where a single value gives no spread. `sides`: 2 if the opposite mean has to be below the limit too.
    """
    if values.shape[1] < 2:
        return [None] * len(values)
    from scipy.special import ndtri

    means = values.mean(1)
    room = limit - means
    there = room > 1e-9 * np.abs(values).max(1, initial=limit)
    z = float(ndtri(1 - alpha) + ndtri(1 - (1 - POWER) / sides))
    by_spread = (z * values.std(1, ddof=1) / np.where(there, room, 1)) ** 2
    unseen = np.where(there, _unseen(means, limit, largest), 0.5).clip(1e-12, 1 - 1e-12)
    needed = np.ceil(np.maximum(by_spread, math.log(alpha) / np.log(unseen))).clip(2)
    return [int(number) if found else None for number, found in zip(needed, there, strict=True)]


def samples_within(values: Values, margin: Margin, alpha: float) -> list[int | None]:
    """Samples with which `within` finds each row's mean within the margin with probability `POWER` or more."""
    worse = np.where(values.mean(1) < 0, -1.0, 1.0)[:, None] * values
    return samples_below(worse, margin.within, margin.largest, alpha, sides=2)
