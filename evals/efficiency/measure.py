"""Time one generation of one setting on the in-layer path, which never holds the full cache of all layers."""

import ctypes
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from compresskv.engine import graph
from compresskv.engine.cache import EvictedCache
from compresskv.engine.graph import EAGER
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.memory import gpus
from compresskv.engine.prefill import forward_prompt
from compresskv.engine.rows import by_size
from compresskv.engine.setting import Setting
from compresskv.models import LoadedModel
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import counts

WARM_UP = EAGER + 1
"""Number of first decode steps that are not counted. With `engine.graph`, the last uncounted step is captured."""


LAUNCH_BOUND = 0.9
"""A decode step is launch-bound if its launches take more than this share of its time."""


@dataclass(frozen=True)
class Contender:
    """A setting, the tokens per forward pass of its prefill (None: the whole prompt), and when it evicts.

    `method`, `protocol` and `variant` are its names in results.
    """

    setting: Setting
    chunk: int | None = None
    method: str = "full"
    protocol: str = "corrected"
    variant: str = ""
    schedule: EvictionSchedule = AFTER_PROMPT


@dataclass(frozen=True)
class Measurement:
    """The measurements of one generation.

    `first_token_s`: seconds to the first token (prefill, scoring and eviction). `decode_ms`: median milliseconds per
    decode step. `launch_bound`: whether the host takes about as long to launch a decode step as the step takes, so that
    the GPU waits (None without a GPU). `cache_bytes`: bytes allocated for kept and new tokens; `total_cache_bytes`:
    with the sliding-window layers. `peak_bytes`: peak of the process, or the sum of the peaks of all GPUs; None if
    unknown. `peak_bytes_by_gpu`: the peak of each GPU.
    """

    first_token_s: float
    decode_ms: float
    launch_bound: bool | None
    total_s: float
    cache_bytes: int
    total_cache_bytes: int
    realised_budget: float
    peak_bytes: int | None
    peak_bytes_by_gpu: tuple[int, ...] = ()


@torch.no_grad()
def measure(model: LoadedModel, ids: torch.Tensor, contender: Contender, new_tokens: int) -> Measurement:
    """Measure the generation of exactly `new_tokens` tokens from `ids` [prompt]. `model` must be `attached`.

    Raises `RuntimeError` if the cache does not allocate the computed number of bytes.
    """
    devices = gpus(model.model)
    give_back()
    reset_peak(devices)
    started = now(devices)
    setting, schedule = contender.setting, contender.schedule
    spare = max((setting.tokens(ids.numel()) or 0) - ids.numel(), 0)
    room = schedule.room(new_tokens, spare, setting.window)
    cache = LayerwiseCache(model.model.config, setting, ids.numel(), room, schedule)
    token = forward_prompt(model.model, ids, cache, contender.chunk).argmax()[None]
    first = now(devices)
    steps = decode_steps(model, cache, token, ids.numel(), new_tokens - 1)
    ended = now(devices)
    tally = counts(cache.kept)
    if cache.nbytes != (expected := cache.allocated_bytes(list(map(by_size, tally)), room)):
        raise RuntimeError(f"{cache.nbytes} bytes of cache are allocated, {expected} were expected")
    total = sum(map(sum, tally))
    return Measurement(
        first_token_s=first - started,
        decode_ms=1000 * steps.usual(schedule),
        launch_bound=steps.launch_bound,
        total_s=ended - started,
        cache_bytes=cache.nbytes,
        total_cache_bytes=cache.nbytes + cache.sliding_bytes,
        realised_budget=total / max(sum(map(len, tally)), 1),
        **peak_fields(devices),
    )


@dataclass(frozen=True)
class Steps:
    """Seconds of each decode step after the first `WARM_UP`; `launch_bound` as in `Measurement`."""

    counted: Sequence[float]
    launch_bound: bool | None

    def usual(self, schedule: EvictionSchedule) -> float:
        """Return the median, or the mean if eviction continues: few steps evict, and the median would ignore them."""
        return fmean(self.counted) if schedule.decodes else median(self.counted)


@torch.no_grad()
def decode_steps(
    model: LoadedModel, cache: EvictedCache, tokens: torch.Tensor, position: int | torch.Tensor, count: int
) -> Steps:
    """Time `count` greedy decode steps after the rows' last `tokens` [rows]; `position` is as in `forward_tokens`."""
    devices = gpus(model.model)
    feed = graph.Steps(model.model, cache)
    steps, asked = [], []
    for step in range(count):
        before = now(devices)
        tokens = feed(tokens, position + step).argmax(-1)
        asked.append(time.perf_counter() - before)
        steps.append(now(devices) - before)
    bound = sum(asked) > LAUNCH_BOUND * sum(steps) if devices else None
    return Steps(steps[WARM_UP:] or steps, bound)


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Reset the peak memory of these GPUs, or of this process if there are no GPUs."""
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    if not devices and (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak(devices: Sequence[torch.device]) -> list[int] | None:
    """Return the peak bytes since `reset_peak` of each GPU, or of this process; None if they are unknown."""
    if devices:
        return [torch.cuda.max_memory_allocated(device) for device in devices]
    return [_status("VmHWM")] if Path("/proc/self/status").exists() else None


def peak_fields(devices: Sequence[torch.device]) -> dict[str, Any]:
    """Return the peaks as fields of a measurement."""
    peaks = peak(devices)
    by_gpu = tuple(peaks or ()) if devices else ()
    return {"peak_bytes": None if peaks is None else sum(peaks), "peak_bytes_by_gpu": by_gpu}


def resident_bytes() -> int:
    """Return the resident bytes of this process, after returning freed memory to the system."""
    give_back()
    return _status("VmRSS")


def give_back() -> None:
    """Return freed memory to the system, if the C library supports it."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def now(devices: Sequence[torch.device]) -> float:
    """Synchronise these GPUs and return the clock in seconds."""
    for device in devices:
        torch.cuda.synchronize(device)
    return time.perf_counter()
