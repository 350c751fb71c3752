"""Statistics of tables: bootstrap intervals of means, and paired comparisons of settings."""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evals.tables.equivalence import POWER, Margin, samples_within, within

RESAMPLES = 2000
"""Number of bootstrap draws of an interval."""

EXACT = 14
"""Maximum number of differing samples for which a permutation test enumerates all 2^n signs."""

ALPHA = 0.05
"""Significance level: settings differ if the corrected p-value is below it."""

FEWEST = 9999
"""Minimum number of random signs that a permutation test draws."""

ENOUGH = 400
"""Number of equally large sums of random signs that determine a p-value to 5 %."""

MOST_GROUPS = 100
"""Number of groups of settings above which only a covering set of groups is computed."""

BLOCK = 512
"""Number of couples of settings that are computed together."""

ROUNDING = 1e-5
"""Share of the largest value below which a mean counts as 0: scores have four decimals, so differences that cancel
leave a rounding error of this size."""

Name = TypeVar("Name", bound=Hashable)


def interval(*strata: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % bootstrap percentile interval of the mean over `strata`, such as tasks, of their mean values.

    Values are resampled within each stratum. The seed is fixed, so equal values in equal order have equal intervals,
    and a table agrees with the summary. Returns None if a stratum has fewer than two values.
    """
    if not strata or any(len(stratum) < 2 for stratum in strata):
        return None
    means = np.zeros(RESAMPLES)
    for stratum, draws in zip(strata, _draws(tuple(map(len, strata))), strict=True):
        means += np.asarray(stratum, dtype=float)[draws].mean(1)
    low, high = np.percentile(means / len(strata), [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)  # the draws for 4,000 samples take 64 MB
def _draws(lengths: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Draw indices [RESAMPLES, length] for each stratum; the result is the same at every call."""
    random = np.random.default_rng(0)
    return [random.integers(0, length, (RESAMPLES, length)) for length in lengths]


@dataclass(frozen=True)
class Difference:
    """Paired differences of two settings over `n` samples: their mean with its 95 % interval, in the metric's unit.

    `p`: two-sided permutation p-value, not corrected. `needed`: number of samples that would separate the two; None if
    the mean is 0. `equivalence`: p-value of the hypothesis that the mean is not within the margin
    (`evals.tables.equivalence`), not corrected; 1 without a margin. `enough`: number of samples that would show that it
    is; None if the mean is not within the margin.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float
    n: int
    needed: int | None
    equivalence: float = 1.0
    enough: int | None = None


def difference(
    first: Sequence[float], second: Sequence[float], comparisons: int = 1, margin: Margin | None = None
) -> Difference:
    """Return `second` − `first`, with at least one value each in equal order; `comparisons`: number of comparisons."""
    return mean_difference([np.asarray(second, dtype=float) - np.asarray(first, dtype=float)], comparisons, margin)


def mean_difference(
    strata: Sequence[Sequence[float] | NDArray[np.float64]], comparisons: int = 1, margin: Margin | None = None
) -> Difference:
    """Return the mean over `strata`, such as tasks, of the means of their paired differences. No stratum may be empty.

    All strata have the same weight regardless of their size, as in the average of a table. `comparisons` is the number
    of comparisons.
    """
    n = sum(map(len, strata))
    parts = [np.asarray(stratum, dtype=float) for stratum in strata]
    weighted = weighted_values([part[None] for part in parts])[0]
    ((equivalence, enough),) = _equivalences(weighted[None], margin, comparisons, effective(list(map(len, parts))))
    return Difference(
        mean=float(np.mean([part.mean() for part in parts])),
        interval=interval(*(part.tolist() for part in parts)),
        p=permutation_p(weighted, comparisons),
        n=n,
        needed=samples_needed(weighted, comparisons),
        equivalence=equivalence,
        enough=enough,
    )


def weighted_values(strata: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the values [rows, n] of strata [rows, n of the stratum], weighted: a row's mean is that over strata."""
    n = sum(stratum.shape[1] for stratum in strata)
    return np.concatenate([stratum * (n / (len(strata) * stratum.shape[1])) for stratum in strata], axis=1)


def effective(lengths: Sequence[int]) -> float:
    """Return how many samples of equal weight the strata of these lengths count for, where rare values may be missed.

    With rare values in a share p_t of each of k strata, n_t samples each miss all of them with a probability of
    Π (1 − p_t)^n_t. By Jensen's inequality, this is at most (1 − mean p)^(k · min n). Kish's k² / Σ 1/n is more, and
    does not bound it: the rare values may all be in the smallest stratum.
    """
    return float(len(lengths) * min(lengths))


def _equivalences(
    weighted: NDArray[np.float64], margin: Margin | None, comparisons: int, size: float
) -> list[tuple[float, int | None]]:
    """Return `equivalence` and `enough` of every row of differences."""
    if margin is None:
        return [(1.0, None)] * len(weighted)
    p_values = within(weighted, margin, size).tolist()
    return list(zip(p_values, samples_within(weighted, margin, size, ALPHA / comparisons), strict=True))


def all_differences(
    settings: Sequence[Sequence[Sequence[float]]], couples: Sequence[tuple[int, int]], margin: Margin | None = None
) -> list[Difference]:
    """Return the `mean_difference` of every couple (first, second) of indices of `settings`.

    The number of comparisons is that of couples. Each setting has a sequence of values for each stratum, in equal order
    of the samples. Values that couples share, such as bootstrap draws and sums of random signs, are computed once for
    each setting.
    """
    if not couples:
        return []
    strata = [np.array(of_stratum, dtype=float) for of_stratum in zip(*settings, strict=True)]
    n = sum(stratum.shape[1] for stratum in strata)
    size = effective([stratum.shape[1] for stratum in strata])
    weighted = weighted_values(strata)
    means = _bootstrapped(strata)
    p_values = _permutation_ps(weighted, couples, len(couples))
    found = []
    for start in range(0, len(couples), BLOCK):
        block = couples[start : start + BLOCK]
        first, second = np.array(block).T
        values = weighted[second] - weighted[first]
        bounds = None if means is None else np.percentile(means[second] - means[first], [2.5, 97.5], axis=1).T.tolist()
        needed = _samples_needed(values, len(couples))
        equivalences = _equivalences(values, margin, len(couples), size)
        for place, mean in enumerate(values.mean(1).tolist()):
            between = None if bounds is None else (bounds[place][0], bounds[place][1])
            found.append(Difference(mean, between, p_values[start + place], n, needed[place], *equivalences[place]))
    return found


def _bootstrapped(strata: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Return the means [settings, RESAMPLES] whose percentiles form an interval; None if there is no interval."""
    if any(stratum.shape[1] < 2 for stratum in strata):
        return None
    means = np.zeros((len(strata[0]), RESAMPLES))
    for stratum, draws in zip(strata, _draws(tuple(stratum.shape[1] for stratum in strata)), strict=True):
        for place, values in enumerate(stratum):
            means[place] += values[draws].mean(1)
    return means / len(strata)


def permutation_p(differences: Sequence[float] | NDArray[np.float64], comparisons: int = 1) -> float:
    """Return the two-sided p-value of the sign-flipping permutation test for a mean difference of 0.

    The test is exact for up to `EXACT` nonzero differences (a zero has no sign). For more, it draws random signs with a
    fixed seed, in sufficient number for a p-value to pass the correction for `comparisons`.
    """
    values = np.asarray(differences, dtype=float)
    return _permutation_ps(np.stack([np.zeros_like(values), values]), [(0, 1)], comparisons)[0]


def _permutation_ps(settings: NDArray[np.float64], couples: Sequence[tuple[int, int]], comparisons: int) -> list[float]:
    """Return the p-value of every couple (first, second) of rows of `settings` [settings, n]."""
    first, second = np.array(couples).T
    p_values = np.ones(len(couples))
    signed = np.concatenate(
        [
            np.count_nonzero(settings[second[start : start + BLOCK]] != settings[first[start : start + BLOCK]], axis=1)
            for start in range(0, len(couples), BLOCK)
        ]
    )
    for number in range(2, EXACT + 1):
        places = np.flatnonzero(signed == number)
        for start in range(0, len(places), BLOCK):
            block = places[start : start + BLOCK]
            values = settings[second[block]] - settings[first[block]]
            p_values[block] = _exact(values[values != 0].reshape(len(block), number))
    many = np.flatnonzero(signed > EXACT)
    resamples = max(FEWEST, math.ceil(4 * comparisons / ALPHA) - 1)
    p_values[many] = _sampled(settings, first[many], second[many], resamples)
    return [float(p) for p in p_values]


def _exact(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p-values of rows of differences [rows, number] from all signs.

    Opposite sums are equally large, so only half of the signs are computed.
    """
    number = values.shape[1]
    signs = 1.0 - 2.0 * (np.arange(2 ** (number - 1))[:, None] >> np.arange(number) & 1)
    totals = np.abs(values.sum(1)) - 1e-9 * np.abs(values).sum(1)
    return (np.abs(values @ signs.T) >= totals[:, None]).mean(1)


def _sampled(
    settings: NDArray[np.float64], first: NDArray[np.int64], second: NDArray[np.int64], resamples: int
) -> NDArray[np.float64]:
    """Return the p-values of couples of rows of `settings` from random signs.

    All couples use the same signs, because the signed sum of a difference is the difference of two signed sums. If
    `resamples` exceeds `FEWEST`, a couple stops when `ENOUGH` sums were at least as large as its own. A couple gets the
    smallest p-value if by Hoeffding's bound, with 99 % probability, none of `resamples` sums will be as large as its
    own.
    """
    as_large, drawn = np.zeros(len(first)), np.zeros(len(first))
    totals, squares = np.zeros(len(first)), np.zeros(len(first))
    for start in range(0, len(first), BLOCK):
        block = slice(start, start + BLOCK)
        values = settings[second[block]] - settings[first[block]]
        totals[block], squares[block] = np.abs(values.sum(1)), (values**2).sum(1)
    enough = ENOUGH if resamples > FEWEST else resamples
    certain = (resamples > FEWEST) & (2 * np.exp(-(totals**2) / (2 * squares)) * resamples < 0.01)
    drawn[certain] = resamples
    totals *= 1 - 1e-5
    for signs in _batches_of_signs(settings.shape[1], resamples):
        waiting = np.flatnonzero((drawn < resamples) & (as_large < enough))
        if not len(waiting):
            break
        rows, place = np.unique(np.concatenate([first[waiting], second[waiting]]), return_inverse=True)
        sums = settings[rows] @ signs.T
        step = max(1, 2**16 // len(signs))
        for start in range(0, len(waiting), step):
            some = waiting[start : start + step]
            one, other = (place[offset + start :][: len(some)] for offset in (0, len(waiting)))
            differences = sums[other]
            differences -= sums[one]
            large = np.abs(differences, out=differences) >= totals[some, None]
            as_large[some] += np.count_nonzero(large, axis=1)
        drawn[waiting] += len(signs)
    return (as_large + 1) / (drawn + 1)


def _batches_of_signs(n: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield random signs [resamples, n] in batches, the same at every call; the first `FEWEST` rows are cached."""
    size = max(8, 2**18 // n // 8 * 8)
    kept = _signs(n)
    for start in range(0, FEWEST, size):
        yield kept[start : start + size].astype(np.float64)
    random = np.random.default_rng(1)
    for start in range(FEWEST, resamples, size):
        bits = np.unpackbits(np.frombuffer(random.bytes(size * n // 8), np.uint8)).reshape(size, n)
        yield 2 * bits[: resamples - start].astype(np.float64) - 1


@lru_cache(maxsize=1)  # the signs for 4,000 samples take 40 MB
def _signs(n: int) -> NDArray[np.int8]:
    """Draw random signs [FEWEST, n]; the result is the same at every call."""
    return 2 * np.random.default_rng(0).integers(0, 2, (FEWEST, n), dtype=np.int8) - 1


def samples_needed(differences: Sequence[float] | NDArray[np.float64], comparisons: int = 1) -> int | None:
    """Return the number of samples with which a paired test detects this mean difference with probability `POWER`.

    n = ((z(1 − α/2) + z(power)) · sd / mean)², normal approximation, at α = `ALPHA` / `comparisons`, the first level of
    Holm's correction; with fewer than the smallest number returned, no p-value is below it. Returns None if the mean is
    0 up to rounding, or if there are fewer than two differences.
    """
    return _samples_needed(np.asarray(differences, dtype=float)[None], comparisons)[0]


def _samples_needed(differences: NDArray[np.float64], comparisons: int) -> list[int | None]:
    """Return `samples_needed` for every row of `differences` [pairs, n]."""
    if differences.shape[1] < 2:
        return [None] * len(differences)
    means, largest = differences.mean(1), np.abs(differences).max(1)
    there = np.abs(means) > ROUNDING * largest
    spreads = differences.std(1, ddof=1) / np.where(there, means, 1)
    fewest = math.floor(math.log2(comparisons / ALPHA)) + 2  # the smallest p-value is 2 / 2^n
    needed = np.maximum(fewest, np.ceil((_z(comparisons) * spreads) ** 2))
    return [int(number) if shown else None for number, shown in zip(needed, there, strict=True)]


@lru_cache
def _z(comparisons: int) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - ALPHA / comparisons / 2) + ndtri(POWER))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, step-down): the chance of any false difference stays below α."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def groups(names: Sequence[Name], differing: AbstractSet[frozenset[Name]]) -> list[list[Name]]:
    """Return the largest groups in which no two names differ, in the order of `names`; a name may be in several groups.

    `differing` holds the pairs that differ. This is the compact letter display of Piepho (2004): start with one group,
    split it for each pair, and drop groups contained in another one. If this gives more than `MOST_GROUPS`, return a
    subset of the largest groups in which any two names that do not differ share a group.
    """
    place = {name: number for number, name in enumerate(names)}
    pairs = sorted(sorted(map(place.__getitem__, pair)) for pair in differing)
    found = _split(len(names), pairs)
    ordered = [[number for number in range(len(names)) if group >> number & 1] for group in found]
    return [[names[number] for number in group] for group in sorted(ordered)]


def _split(count: int, pairs: Sequence[Sequence[int]]) -> Iterable[int]:
    """Return the groups as integers with one bit per index."""
    groups = {(1 << count) - 1}
    for first, second in pairs:
        both = 1 << first | 1 << second
        split = [group for group in groups if group & both == both]
        groups.difference_update(split)
        parts = {group & ~bit for group in split for bit in (1 << first, 1 << second)}
        every = groups | parts
        groups |= {part for part in parts if not any(part & group == part != group for group in every)}
        if len(groups) > MOST_GROUPS:
            return _covering(count, pairs)
    return groups


def _covering(count: int, pairs: Sequence[Sequence[int]]) -> Iterable[int]:
    """Yield groups that cannot be extended, until any two indices that are not in `pairs` share a group."""
    alike = [(1 << count) - 1] * count
    for first, second in pairs:
        alike[first] &= ~(1 << second)
        alike[second] &= ~(1 << first)
    covered = [0] * count
    for start in range(count):
        while missing := alike[start] & ~covered[start]:
            # Add one index that is not covered yet, then every index that fits the group.
            group, fitting = 1 << start, alike[start]
            for number in (_lowest(missing), *range(count)):
                if fitting >> number & 1:
                    group |= 1 << number
                    fitting &= alike[number]
            for number in range(count):
                if group >> number & 1:
                    covered[number] |= group
            yield group


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
