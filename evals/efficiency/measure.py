"""One generation of one setting, timed: always on the in-layer path, which never holds the full cache of all layers."""

import ctypes
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from compresskv.engine.decode import forward_tokens
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.prefill import Setting, forward_prompt
from compresskv.models import LoadedModel
from compresskv.selection import counts

WARM_UP = 2
"""Decoding steps that are not counted."""


@dataclass(frozen=True)
class Contender:
    """A setting, and the tokens of one forward pass of its prefill (None: the whole prompt)."""

    setting: Setting
    chunk: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One generation: seconds to the first token (prefill, scoring and eviction), milliseconds a token after that.

    `cache_bytes` are allocated for kept and new tokens, `total_cache_bytes` with those of sliding-window
    layers; `peak_bytes` of the process or device, None if unknown.
    """

    first_token_s: float
    decode_ms: float
    total_s: float
    cache_bytes: int
    total_cache_bytes: int
    realised_budget: float
    peak_bytes: int | None


@torch.no_grad()
def measure(model: LoadedModel, ids: torch.Tensor, contender: Contender, new_tokens: int) -> Measurement:
    """One generation from `ids` [prompt] of exactly `new_tokens` tokens. `model` must be `attached`.

    Raises `RuntimeError` if the cache holds other than its kept tokens, rounded up, and room for the new ones.
    """
    give_back()
    reset_peak(model.device)
    started = _now(model.device)
    cache = LayerwiseCache(model.model.config, contender.setting, ids.numel(), new_tokens)
    token = forward_prompt(model.model, ids, cache, contender.chunk).argmax()[None]
    first = _now(model.device)
    steps = []
    for step in range(new_tokens - 1):
        before = _now(model.device)
        token = forward_tokens(model.model, token, cache, ids.numel() + step).argmax(-1)
        steps.append(_now(model.device) - before)
    ended = _now(model.device)
    tally = counts(cache.kept)
    if cache.nbytes != (expected := cache.allocated_bytes(tally, new_tokens)):
        raise RuntimeError(f"{cache.nbytes} bytes of cache are allocated, {expected} were expected")
    total = sum(map(sum, tally))
    return Measurement(
        first_token_s=first - started,
        decode_ms=1000 * median(steps[WARM_UP:] or steps),
        total_s=ended - started,
        cache_bytes=cache.nbytes,
        total_cache_bytes=cache.nbytes + cache.sliding_bytes,
        realised_budget=total / sum(map(len, tally)),
        peak_bytes=peak(model.device),
    )


def reset_peak(device: torch.device) -> None:
    """Start counting peak memory anew, of the device or of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak(device: torch.device) -> int | None:
    """Peak bytes since `reset_peak`; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if Path("/proc/self/status").exists() else None


def resident_bytes() -> int:
    """Bytes of memory that this process holds now, freed ones given back first."""
    give_back()
    return _status("VmRSS")


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
