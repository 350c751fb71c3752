"""The statistics of every table: bootstrap intervals of means, and paired comparisons of settings."""

import math
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap draws of an interval."""

EXACT = 14
"""Up to as many differing samples, a permutation test goes through all 2^n signs."""

ALPHA = 0.05
"""Settings differ where the corrected p-value is below this."""

POWER = 0.8
"""How probable it is to see a difference that is there, with the samples that `samples_needed` asks for."""

ROUNDING = 1e-5
"""A mean below this share of the largest value is 0: scores have four decimals, and differences that cancel leave as
much."""

Name = TypeVar("Name", bound=Hashable)


def interval(*strata: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap percentile interval of the mean over `strata`, such as tasks, of the means of their values.

    Values are drawn anew within each stratum. One seed for all: equal values in equal order have equal intervals, and
    a table shows what the summary says. None where a stratum has fewer than two values.
    """
    if not strata or any(len(stratum) < 2 for stratum in strata):
        return None
    means = np.zeros(RESAMPLES)
    for stratum, draws in zip(strata, _draws(tuple(map(len, strata))), strict=True):
        means += np.asarray(stratum, dtype=float)[draws].mean(1)
    low, high = np.percentile(means / len(strata), [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)  # those of 4,000 samples take 64 MB
def _draws(lengths: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Places [RESAMPLES, length] drawn for each stratum, the same at every call."""
    random = np.random.default_rng(0)
    return [random.integers(0, length, (RESAMPLES, length)) for length in lengths]


@dataclass(frozen=True)
class Difference:
    """Paired differences of two settings over `n` samples: their mean with its 95 % interval, in the metric's unit.

    `p`: two-sided permutation p-value, not corrected. `needed`: samples to separate the two, None if the mean is 0.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float
    n: int
    needed: int | None


def difference(first: Sequence[float], second: Sequence[float], comparisons: int = 1) -> Difference:
    """`second` − `first`, at least one value each, in equal order of the samples; one of so many `comparisons`."""
    return mean_difference([np.asarray(second, dtype=float) - np.asarray(first, dtype=float)], comparisons)


def mean_difference(strata: Sequence[Sequence[float] | NDArray[np.float64]], comparisons: int = 1) -> Difference:
    """The mean over `strata`, such as tasks, of the means of their paired differences; none of them empty.

    Every stratum counts the same, however many samples it has, as in the average of a table. One of so many
    `comparisons`.
    """
    n = sum(map(len, strata))
    parts = [np.asarray(stratum, dtype=float) for stratum in strata]
    weighted = np.concatenate([part * (n / (len(parts) * len(part))) for part in parts])
    return Difference(
        mean=float(np.mean([part.mean() for part in parts])),
        interval=interval(*(part.tolist() for part in parts)),
        p=permutation_p(weighted, comparisons),
        n=n,
        needed=samples_needed(weighted, comparisons),
    )


def permutation_p(differences: Sequence[float] | NDArray[np.float64], comparisons: int = 1) -> float:
    """Two-sided p-value of a mean difference of 0, where the sign of each difference is as good as its opposite.

    Exact for up to `EXACT` differences other than 0 (a 0 has no sign); beyond, from random signs with a fixed seed, so
    many that a p-value can pass the correction for `comparisons`.
    """
    values = np.asarray(differences, dtype=float)
    signed = values[values != 0]
    if len(signed) < 2:
        return 1.0
    if len(signed) <= EXACT:
        from scipy.stats import permutation_test

        def mean(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
            return x.mean(axis)

        # With one sample of differences, scipy permutes signs.
        return float(permutation_test((signed,), mean, permutation_type="samples", n_resamples=2**EXACT).pvalue)
    # scipy draws anew for each pair, at 0.2 s for 200 samples: minutes for all pairs of a sweep.
    resamples = max(9999, math.ceil(4 * comparisons / ALPHA) - 1)
    sums = np.abs(_signs(len(values), resamples) @ values.astype(np.float32))
    as_large = np.count_nonzero(sums >= abs(values.sum()) * (1 - 1e-5))
    return (int(as_large) + 1) / (resamples + 1)


@lru_cache(maxsize=1)  # those of 4,000 samples take 160 MB
def _signs(n: int, resamples: int) -> NDArray[np.float32]:
    """Random signs [resamples, n], the same at every call."""
    return (2 * np.random.default_rng(0).integers(0, 2, (resamples, n), dtype=np.int8) - 1).astype(np.float32)


def samples_needed(differences: Sequence[float] | NDArray[np.float64], comparisons: int = 1) -> int | None:
    """Samples with which a paired test sees a difference of this mean and spread with probability `POWER`.

    n = ((z(1 − α/2) + z(power)) · sd / mean)², normal approximation, at α = `ALPHA` / `comparisons`, where Holm's
    correction starts. None where the mean is 0 but for rounding, or where fewer than two differences give no spread.
    """
    values = np.asarray(differences, dtype=float)
    mean = values.mean()
    if len(values) < 2 or abs(mean) <= ROUNDING * np.abs(values).max():
        return None
    return max(2, math.ceil((_z(comparisons) * values.std(ddof=1) / mean) ** 2))


@lru_cache
def _z(comparisons: int) -> float:
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA / comparisons / 2) + norm.ppf(POWER))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, step-down): the chance of any false difference stays below α."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def groups(names: Sequence[Name], differing: AbstractSet[frozenset[Name]]) -> list[list[Name]]:
    """The largest groups of which no two differ, in the order of `names`; a name may be in several.

    `differing` holds the pairs that differ. This is the compact letter display of Piepho (2004): start with one group,
    split it for each pair, drop what another group contains.
    """
    candidates: list[frozenset[Name]] = [frozenset(names)]
    for pair in sorted(differing, key=lambda pair: sorted(map(names.index, pair))):
        split: list[frozenset[Name]] = []
        for group in candidates:
            split += [group - {name} for name in pair] if pair <= group else [group]
        unique = list(dict.fromkeys(split))
        candidates = [group for group in unique if not any(group < other for other in unique)]
    ordered = [[name for name in names if name in group] for group in candidates]
    return sorted(ordered, key=lambda group: [names.index(name) for name in group])
