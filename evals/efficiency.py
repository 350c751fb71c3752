"""Latency and memory of each setting, always on the in-layer path, with the full cache beside it in the same run."""

import ctypes
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from compresskv.attention import attached
from compresskv.errors import UserError
from compresskv.generation import Setting, counts, forward_prompt
from compresskv.in_layer import LayerwiseCache
from compresskv.models import LoadedModel
from evals.console import screen
from evals.haystack import essays
from evals.progress import Progress
from evals.results.provenance import environment
from evals.results.store import new_folder, write_json

WARM_UP = 2
"""Decoding steps that are not counted."""


@dataclass(frozen=True)
class EfficiencyConfig:
    """`conf/eval/efficiency.yaml`; `lengths` and `new_tokens` in tokens, `rounds` of all settings in turn."""

    name: str
    haystack: str
    lengths: tuple[int, ...]
    new_tokens: int
    rounds: int


@dataclass(frozen=True)
class Contender:
    """A setting, and the tokens of one forward pass of its prefill (None: the whole prompt)."""

    setting: Setting
    chunk: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One generation: seconds to the first token (prefill, scoring and eviction), milliseconds a token after that.

    `cache_bytes` are allocated for kept and new tokens; `peak_bytes` of the process or device, None if unknown.
    """

    first_token_s: float
    decode_ms: float
    total_s: float
    cache_bytes: int
    realised_budget: float
    peak_bytes: int | None


def run(
    model: LoadedModel, config: EfficiencyConfig, contenders: Mapping[str, Contender], results: Path, progress: Progress
) -> Path:
    """Measure every contender at every length, with ratios to the first, as a table and a figure; returns a path.

    What does not fit the memory is left out. Raises `UserError` in the end if there was such.
    """
    if not config.lengths or config.new_tokens < 2 or config.rounds < 1:
        raise UserError("eval.lengths needs a length, eval.new_tokens 2 or more, eval.rounds 1 or more")
    if (longest := max(config.lengths)) + config.new_tokens > model.window:
        raise UserError(
            f"eval.lengths: {longest} and {config.new_tokens} new tokens exceed the {model.window}-token window"
        )
    ids, folder = _text(model, config), new_folder(results / "efficiency" / model.name)
    work = [
        (length, number, name, contender)
        for length in config.lengths
        for number in range(config.rounds + 1)
        for name, contender in contenders.items()
    ]
    about = {
        "model": model.name,
        "dtype": model.dtype,
        "backend": model.backend,
        "new_tokens": config.new_tokens,
        "rounds": config.rounds,
        "environment": environment(),
    }
    found: dict[tuple[str, int], list[Measurement]] = {}
    failed: dict[tuple[str, int], str] = {}
    rows: list[dict[str, Any]] = []
    with attached(model.model, model.backend), progress.track(f"{model.name} efficiency", work) as steps:
        for length, number, name, contender in steps:
            if (name, length) in failed:
                continue
            try:
                measured = measure(model, ids[:length], contender, config.new_tokens)
            except (UserError, torch.OutOfMemoryError) as error:
                failed[name, length] = str(error) or "out of memory"
                continue
            if number:  # the first round warms up
                found.setdefault((name, length), []).append(measured)
                rows = [_row(*key, found, next(iter(contenders))) for key in found]
                write_json(folder / "efficiency.json", {**about, "rows": rows})
    if rows:
        _show(f"{model.name} · {config.new_tokens} new tokens · {model.dtype} · {model.backend}", rows)
        from evals.efficiency_figure import draw

        for path in draw(rows, f"Latency and memory, {model.name}", folder / "efficiency"):
            screen().print(f"figure: {path}", soft_wrap=True)
    if failed:
        (name, length), reason = next(iter(failed.items()))
        raise UserError(f"{len(failed)} measurements failed, such as {name} at {length} tokens ({reason})")
    return folder / "efficiency.json"


@torch.no_grad()
def measure(model: LoadedModel, ids: torch.Tensor, contender: Contender, new_tokens: int) -> Measurement:
    """One generation from `ids` [prompt] of exactly `new_tokens` tokens. `model` must be `attached`.

    Raises `RuntimeError` if the cache holds other than its kept tokens, rounded up, and room for the new ones.
    """
    give_back()
    reset_peak(model.device)
    started = _now(model.device)
    cache = LayerwiseCache(model.model.config, contender.setting, ids.numel(), new_tokens)
    token = forward_prompt(model.model, ids, cache, contender.chunk).argmax()
    first = _now(model.device)
    steps = []
    for step in range(new_tokens - 1):
        before = _now(model.device)
        position = torch.tensor([[ids.numel() + step]], device=model.device)
        out = model.model(token.view(1, 1), position_ids=position, past_key_values=cache, use_cache=True)
        token = out.logits[0, -1].argmax()
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


def _text(model: LoadedModel, config: EfficiencyConfig) -> torch.Tensor:
    """Running text of the longest length: ids [longest]."""
    text = "\n".join(essays(config.haystack))
    longest = max(config.lengths)
    while len(ids := model.tokenizer(text, add_special_tokens=False).input_ids) < longest:
        text += text
    return torch.tensor(ids[:longest], device=model.device)


def _row(name: str, length: int, found: dict[tuple[str, int], list[Measurement]], reference: str) -> dict[str, Any]:
    """Medians of a setting at a length, and their ratios to the full cache's."""
    names = ("first_token_s", "decode_ms", "total_s", "cache_bytes", "realised_budget", "peak_bytes")

    def medians(key: tuple[str, int]) -> dict[str, Any]:
        values = {field: [getattr(m, field) for m in found[key]] for field in names}
        return {field: None if None in v else median(v) for field, v in values.items()}

    mine = medians((name, length))
    full = medians((reference, length)) if (reference, length) in found else dict.fromkeys(names)
    ratios = {f"{field}_ratio": mine[field] / full[field] for field in names if full[field] and mine[field] is not None}
    return {"setting": name, "length": length, **mine, **ratios}


def _show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    shown = Table(title=title)
    shown.add_column("setting", no_wrap=True)
    for column in ("length", "first token s", "decode ms", "total s", "cache MB", "peak MB"):
        shown.add_column(column, justify="right")
    for row in rows:
        cells = [(row["first_token_s"], row.get("first_token_s_ratio")), (row["decode_ms"], row.get("decode_ms_ratio"))]
        cells += [(row["total_s"], row.get("total_s_ratio"))]
        cells += [(row["cache_bytes"] / 1e6, row.get("cache_bytes_ratio"))]
        cells += [((row["peak_bytes"] or 0) / 1e6, row.get("peak_bytes_ratio"))]
        texts = [f"{value:.2f}" + (f" ×{ratio:.2f}" if ratio else "") for value, ratio in cells]
        shown.add_row(row["setting"], str(row["length"]), *texts)
    screen().print(shown)
