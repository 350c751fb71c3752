"""Integer shares: exact totals, and agreement with the slow definitions."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from compresskv.apportion import largest_remainder, sainte_lague

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8)
reals = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=8)


def slow_largest_remainder(weights: list[Fraction], total: int, caps: list[int]) -> list[int]:
    """Fill caps that are reached and start over with the rest; then floors, then one each by remainder."""
    full: dict[int, int] = {}
    while True:
        free = [i for i in range(len(weights)) if i not in full]
        left = min(total, sum(caps)) - sum(full.values())
        mass = sum(weights[i] for i in free)
        quota = {i: left * weights[i] / mass if mass else Fraction(left, len(free)) for i in free}
        reached = [i for i in free if quota[i] >= caps[i]]
        if not reached:
            break
        full |= {i: caps[i] for i in reached}
    shares = [full.get(i, int(quota.get(i, 0))) for i in range(len(weights))]
    while sum(shares) < min(total, sum(caps)):
        best = max(free, key=lambda i: (quota[i] - shares[i], -i))
        shares[best] += 1
    return shares


def slow_sainte_lague(weights: list[float], total: int, cap: int) -> list[int]:
    """One token at a time."""
    shares = [0] * len(weights)
    for _ in range(min(total, cap * len(weights))):
        below = [i for i in range(len(weights)) if shares[i] < cap]
        shares[max(below, key=lambda i: (weights[i] / (2 * shares[i] + 1), -i))] += 1
    return shares


@given(counts, st.integers(0, 300), st.data())
def test_largest_remainder_is_exact_for_fractions(weights: list[int], total: int, data: st.DataObject) -> None:
    caps = data.draw(st.lists(st.integers(0, 60), min_size=len(weights), max_size=len(weights)))
    fractions = [Fraction(w, 7) for w in weights]
    assert largest_remainder(fractions, total, caps) == slow_largest_remainder(fractions, total, caps)


@given(reals, st.integers(0, 5000), st.data())
def test_largest_remainder_of_reals(weights: list[float], total: int, data: st.DataObject) -> None:
    """The total is exact, caps hold, and without caps no share is off its quota by a token."""
    caps = data.draw(st.lists(st.integers(0, 2000), min_size=len(weights), max_size=len(weights)))
    shares = largest_remainder(weights, total, caps)
    assert sum(shares) == min(total, sum(caps))
    assert all(0 <= share <= cap for share, cap in zip(shares, caps, strict=True))
    free = largest_remainder(weights, total, [total] * len(weights))
    assert sum(free) == total
    if mass := sum(weights):
        assert all(abs(share - total * w / mass) < 1 + 1e-6 for share, w in zip(free, weights, strict=True))


@given(counts, st.integers(0, 200), st.integers(0, 60))
def test_sainte_lague_of_counts(weights: list[int], total: int, cap: int) -> None:
    """Whole weights have many equal quotients: ties go to the lower index."""
    assert sainte_lague(weights, total, cap) == slow_sainte_lague([float(w) for w in weights], total, cap)


@given(reals, st.integers(0, 300), st.integers(0, 100))
def test_sainte_lague_of_reals(weights: list[float], total: int, cap: int) -> None:
    assert sainte_lague(weights, total, cap) == slow_sainte_lague(weights, total, cap)


@settings(max_examples=50)
@given(reals, st.integers(0, 5000), st.integers(0, 2000))
def test_sainte_lague_only_takes_as_weights_arrive(weights: list[float], total: int, cap: int) -> None:
    before: list[int] = []
    for seen in range(1, len(weights) + 1):
        shares = sainte_lague(weights[:seen], total, cap)
        assert sum(shares) == min(total, seen * cap)
        assert all(now <= earlier for now, earlier in zip(shares, before, strict=False))
        before = shares
