"""Time contenders side by side. They run in turn, so that a change in the machine's speed affects all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender over `rounds` rounds, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}
