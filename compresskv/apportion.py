"""Split a total into integer shares whose sum is exact."""

from collections.abc import Sequence
from fractions import Fraction
from heapq import heapify, heappop, heapreplace


def largest_remainder(weights: Sequence[float | Fraction], total: int, caps: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights`, with no share above its cap. Ties go to the lower index.

    Pass `Fraction`s as weights to compare ties exactly. The excess of capped shares is redistributed in the same
    proportion. The shares sum to min(total, Σ caps). If all remaining weights are zero, they count as equal.
    """
    shares = [0] * len(weights)
    left = min(total, sum(caps))
    while left:
        open_ = [i for i in range(len(weights)) if shares[i] < caps[i]]
        mass = sum(weights[i] for i in open_)
        exact = {i: left * (weights[i] / mass if mass > 0 else 1 / len(open_)) for i in open_}
        if any(shares[i] + exact[i] >= caps[i] for i in open_):
            # Fill the caps that are reached, then split the rest again among the other indices.
            for i in open_:
                if shares[i] + exact[i] >= caps[i]:
                    left -= caps[i] - shares[i]
                    shares[i] = caps[i]
            continue
        floors = {i: int(exact[i]) for i in open_}
        by_remainder = sorted(open_, key=lambda i: (floors[i] - exact[i], i))
        extra = set(by_remainder[: left - sum(floors.values())])
        for i in open_:
            shares[i] += floors[i] + (i in extra)
        break
    return shares


def sainte_lague(weights: Sequence[float], total: int, cap: int) -> list[int]:
    """Split `total` by repeatedly giving one token to the largest weight / (2·share + 1) whose share is below `cap`.

    Ties go to the first index. The shares sum to min(total, cap · len(weights)). Adding a weight never raises another
    share, which makes CAKE's cascade equal to a single allocation.
    """
    shares = [0] * len(weights)
    total = min(total, cap * len(weights))
    # Every quotient above a threshold is granted before any quotient below it, so the first grants need no queue. The
    # threshold is chosen so that these grants cannot exceed the total. Layers that reach their cap leave the loop, and
    # a new threshold is computed.
    rising = [i for i, w in enumerate(weights) if w > 0]
    left = total
    while rising and left > len(rising):
        line = sum(weights[i] for i in rising) / (2 * (left - len(rising)))
        granted = {i: int((weights[i] / line + 1) / 2) for i in rising}
        shares = [min(granted.get(i, s), cap) for i, s in enumerate(shares)]
        full = [i for i in rising if shares[i] == cap]
        if not full:
            break
        left -= cap * len(full)
        rising = [i for i in rising if shares[i] < cap]
    queue = [(-w / (2 * s + 1), i) for i, (w, s) in enumerate(zip(weights, shares, strict=True)) if s < cap]
    heapify(queue)
    for _ in range(total - sum(shares)):
        _, i = queue[0]
        shares[i] += 1
        if shares[i] < cap:
            heapreplace(queue, (-weights[i] / (2 * shares[i] + 1), i))
        else:
            heappop(queue)
    return shares
