"""Time contenders side by side. They run in turn, so that a change in the machine's speed affects all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def clock() -> float:
    """Seconds, when the GPUs have done all that was asked of them."""
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender over `rounds` rounds, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = clock()
            run()
            if number:
                seconds[name].append(clock() - started)
    return {name: median(values) for name, values in seconds.items()}
