"""Statistics of tables: bootstrap intervals of means, and paired comparisons of settings."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from typing import Any, TypeVar

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
"""Number of groups above which only a covering set of groups is computed."""

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
    means = _bootstrapped([np.array([stratum], dtype=float) for stratum in strata])
    if means is None:
        return None
    low, high = np.percentile(means[0], [2.5, 97.5])
    return float(low), float(high)


def _bootstrapped(strata: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Return bootstrap means [rows, RESAMPLES] of strata [rows, n of the stratum]; None if a stratum has too few
    values."""
    if not strata or any(stratum.shape[1] < 2 for stratum in strata):
        return None
    means = np.zeros((len(strata[0]), RESAMPLES))
    for stratum, draws in zip(strata, _draws(tuple(stratum.shape[1] for stratum in strata)), strict=True):
        for place, values in enumerate(stratum):
            means[place] += values[draws].mean(1)
    return means / len(strata)


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
    (`evals.tables.equivalence`), not corrected; 1 without a margin. `enough`: number of samples that would show that
    the mean is within the margin; None if it is not.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float
    n: int
    needed: int | None
    equivalence: float = 1.0
    enough: int | None = None

    @property
    def deciding(self) -> int | None:
        """Number of samples with which one of the two tests would decide; None if no number would."""
        return min((n for n in (self.needed, self.enough) if n is not None), default=None)


def difference(
    first: Sequence[float], second: Sequence[float], comparisons: int = 1, margin: Margin | None = None
) -> Difference:
    """Return `second` − `first`: equal numbers of values (at least one) in equal order; `comparisons`: their number."""
    return mean_difference([np.asarray(second, dtype=float) - np.asarray(first, dtype=float)], comparisons, margin)


def mean_difference(
    strata: Sequence[Sequence[float] | NDArray[np.float64]], comparisons: int = 1, margin: Margin | None = None
) -> Difference:
    """Return the mean over `strata`, such as tasks, of the means of their paired differences. No stratum may be empty.

    All strata have the same weight regardless of their size, as in the average of a table. `comparisons` is the number
    of comparisons.
    """
    values = [np.asarray(stratum, dtype=float) for stratum in strata]
    return all_differences([[0 * stratum for stratum in values], values], [(0, 1)], margin, comparisons)[0]


def weighted_values(strata: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the values [rows, n] of strata [rows, n of the stratum], weighted so that a row's mean is the mean over
    strata."""
    n = sum(stratum.shape[1] for stratum in strata)
    return np.concatenate([stratum * (n / (len(strata) * stratum.shape[1])) for stratum in strata], axis=1)


def effective(lengths: Sequence[int]) -> float:
    """Return how many samples of equal weight the strata of these lengths count for in a test that may miss rare
    values.

    If a share p_t of each of k strata are rare values, n_t samples per stratum miss all rare values with probability
    Π (1 − p_t)^n_t. By Jensen's inequality, this is at most (1 − mean p)^(k · min n). Kish's k² / Σ 1/n is larger and
    does not give a bound: the rare values may all be in the smallest stratum.
    """
    return float(len(lengths) * min(lengths))


def all_differences(
    settings: Sequence[Sequence[Sequence[float] | NDArray[np.float64]]],
    couples: Sequence[tuple[int, int]],
    margin: Margin | None = None,
    comparisons: int | None = None,
) -> list[Difference]:
    """Return the `mean_difference` of every couple (first, second) of indices of `settings`.

    Each setting has a sequence of values for each stratum, in equal order of the samples. Values that couples share,
    such as bootstrap draws and sums of random signs, are computed once for each setting. `comparisons`: number of
    comparisons; default: the number of couples.
    """
    if not couples:
        return []
    comparisons = comparisons or len(couples)
    strata = [np.array(of_stratum, dtype=float) for of_stratum in zip(*settings, strict=True)]
    size = effective([stratum.shape[1] for stratum in strata])
    weighted = weighted_values(strata)
    resampled = _bootstrapped(strata)
    p_values = _permutation_ps(weighted, couples, comparisons)
    found = []
    for start in range(0, len(couples), BLOCK):
        first, second = np.array(couples[start : start + BLOCK]).T
        values = weighted[second] - weighted[first]
        means = np.mean([(stratum[second] - stratum[first]).mean(1) for stratum in strata], axis=0).tolist()
        intervals: list[Any] = [None] * len(first)
        if resampled is not None:
            bounds = np.percentile(resampled[second] - resampled[first], [2.5, 97.5], axis=1)
            intervals = list(zip(*bounds.tolist(), strict=True))
        equivalence = [1.0] * len(first)
        enough: list[int | None] = [None] * len(first)
        if margin is not None:
            equivalence = within(values, margin, size).tolist()
            enough = samples_within(values, margin, size, ALPHA / comparisons)
        ps, needed = p_values[start : start + BLOCK], _samples_needed(values, comparisons)
        for mean, between, p, *others in zip(means, intervals, ps, needed, equivalence, enough, strict=True):
            found.append(Difference(mean, between, p, weighted.shape[1], *others))
    return found


def _permutation_ps(settings: NDArray[np.float64], couples: Sequence[tuple[int, int]], comparisons: int) -> list[float]:
    """Return two-sided p-values of the sign-flipping permutation test of a mean difference of 0.

    There is one p-value for every couple (first, second) of rows of `settings` [settings, n]. The test is exact for up
    to `EXACT` nonzero differences (a zero has no sign). For more, it draws random signs with a fixed seed, in
    sufficient number for a p-value to pass the correction for `comparisons`.
    """
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
    return p_values.tolist()


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
    `resamples` exceeds `FEWEST`, a couple stops when `ENOUGH` sums were at least as large as its own sum. A couple gets
    the smallest p-value if, by Hoeffding's bound, all of `resamples` sums will be smaller than its own sum with 99 %
    probability.
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


def _samples_needed(differences: NDArray[np.float64], comparisons: int) -> list[int | None]:
    """Return the number of samples with which a paired test detects each row's mean [rows, n] with probability `POWER`.

    n = ((z(1 − α/2) + z(power)) · sd / mean)², normal approximation, at α = `ALPHA` / `comparisons`, the first level of
    Holm's correction; with fewer samples than the smallest number returned, no p-value is below α. None for a mean that
    is 0 up to rounding, and for fewer than two differences.
    """
    if differences.shape[1] < 2:
        return [None] * len(differences)
    from scipy.special import ndtri

    means, largest = differences.mean(1), np.abs(differences).max(1)
    there = np.abs(means) > ROUNDING * largest
    spreads = differences.std(1, ddof=1) / np.where(there, means, 1)
    fewest = math.floor(math.log2(comparisons / ALPHA)) + 2  # the smallest p-value is 2 / 2^n
    z = float(ndtri(1 - ALPHA / comparisons / 2) + ndtri(POWER))
    needed = np.maximum(fewest, np.ceil((z * spreads) ** 2))
    return [int(number) if shown else None for number, shown in zip(needed, there, strict=True)]


def holm(p_values: Sequence[float], number: int | None = None) -> list[float]:
    """Correct p-values for their number (Holm 1979, step-down): the chance of any false difference stays below α.

    `number`: number of all comparisons, if the same data chose these comparisons from a larger set. The other
    comparisons count as if they had the largest p-values, so no corrected p-value is smaller than with all comparisons.
    """
    number = len(p_values) if number is None else number
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (number - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def groups(names: Sequence[Name], differing: AbstractSet[frozenset[Name]]) -> list[list[Name]]:
    """Return the largest groups of names without a differing pair, in the order of `names`; a name may be in several
    groups.

    `differing` holds the pairs that differ. This is the compact letter display of Piepho (2004): the cliques of the
    graph of names that do not differ. If there are more than `MOST_GROUPS` groups, return a subset: any two names that
    do not differ still share a group.
    """
    import networkx

    alike = networkx.Graph()
    alike.add_nodes_from(range(len(names)))
    for (place, name), (other, another) in combinations(enumerate(names), 2):
        if frozenset((name, another)) not in differing:
            alike.add_edge(place, other)
    found = list(islice(networkx.find_cliques(alike), MOST_GROUPS + 1))
    if len(found) > MOST_GROUPS:
        found = _covering({place: {place, *alike[place]} for place in alike})
    return [[names[place] for place in group] for group in sorted(map(sorted, found))]


def _covering(alike: Mapping[int, AbstractSet[int]]) -> list[set[int]]:
    """Return maximal cliques, until any two names that are `alike` share a clique; each name is alike itself."""
    covered: dict[int, set[int]] = {place: set() for place in alike}
    found = []
    for start, near in alike.items():
        while missing := near - covered[start]:
            group, fitting = {start}, near
            for place in (min(missing), *alike):
                if place in fitting:
                    group.add(place)
                    fitting = fitting & alike[place]
            for place in group:
                covered[place] |= group
            found.append(group)
    return found
