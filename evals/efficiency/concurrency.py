"""Fill a KV memory pool with sequences of distinct prompts: how many fit, and how fast they decode as one batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch

from compresskv.engine.joined import Allocation, WaitingCache, join
from compresskv.engine.memory import free_bytes, gpus
from compresskv.engine.prefill import forward_prompt
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.efficiency.config import Efficiency
from evals.efficiency.measure import Contender, decode_steps, give_back, now, peak_fields, reset_peak
from evals.efficiency.tables import Place
from evals.progress import Progress

MEGABYTE = 10**6


@dataclass(frozen=True)
class Concurrency:
    """The measurements of a full pool. If the pool holds no sequence, the times are None.

    `sequence_bytes`: bytes allocated by one sequence of the full length, for kept and new tokens, including
    sliding-window layers. `batch_bytes`: the same for all sequences. `first_token_s`: median over the prompts.
    `all_first_tokens_s`: time until all prompts are prefilled one by one and joined. `tokens_per_s`: throughput of all
    sequences at the median decode step, or at the mean step if eviction continues while decoding;
    `tokens_per_s_spread`: at the 97.5 and 2.5 % quantiles of the steps. Peaks are as in `Measurement`.
    """

    sequences: int
    sequence_bytes: int
    batch_bytes: int
    first_token_s: float | None = None
    all_first_tokens_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_spread: tuple[float, float] | None = None
    launch_bound: bool | None = None
    peak_bytes: int | None = None
    peak_bytes_by_gpu: tuple[int, ...] = ()


def stretch(text: torch.Tensor, place: int, length: int) -> torch.Tensor:
    """Return prompt number `place` from `text` [*], with `length` tokens or up to 1/32 fewer; `text` wraps around."""
    start = place * length % text.numel()
    tokens = length - 7 * place % max(length // 32, 1)
    return text[torch.arange(start, start + tokens, device=text.device) % text.numel()]


@torch.no_grad()
def fill(
    model: LoadedModel, text: torch.Tensor, length: int, contender: Contender, pool: int, new_tokens: int
) -> Concurrency:
    """Fill a `pool` (bytes) with sequences of about `length` prompt tokens, and generate `new_tokens` tokens for each.

    `model` must be `attached`. Raises `UserError` if the pool is larger than the free memory, and `RuntimeError` if the
    batch allocates more bytes than computed.
    """
    give_back()
    if pool > (free := free_bytes(model.model)):
        raise UserError(
            "eval.pools", "choose smaller pools", value=pool // MEGABYTE, why=f"only {free // MEGABYTE} MB are free"
        )
    devices = gpus(model.model)
    reset_peak(devices)
    filled = _prefill(model, text, length, contender, pool, new_tokens)
    rows, batch, room = len(filled.prompts), filled.allocation.nbytes, filled.allocation.room
    if not rows:
        return Concurrency(0, filled.sequence_bytes, 0)
    lengths = torch.tensor([prompt.prompt_length for prompt in filled.prompts], device=model.device)
    begin = now(devices)
    cache = join(filled.prompts, room)
    joined = now(devices) - begin
    steps = decode_steps(model, cache, torch.stack(filled.logits).argmax(-1), lengths, new_tokens - 1)
    if cache.nbytes + cache.sliding_bytes > batch:
        raise RuntimeError(f"{cache.nbytes + cache.sliding_bytes} bytes of cache are allocated, {batch} were expected")
    slow, fast = np.percentile(steps.counted, [97.5, 2.5]).tolist()
    return Concurrency(
        sequences=rows,
        sequence_bytes=filled.sequence_bytes,
        batch_bytes=batch,
        first_token_s=median(filled.seconds),
        all_first_tokens_s=sum(filled.seconds) + joined,
        tokens_per_s=rows / steps.usual(contender.schedule),
        tokens_per_s_spread=(rows / slow, rows / fast),
        launch_bound=steps.launch_bound,
        **peak_fields(devices),
    )


@dataclass
class Filled:
    """Prefilled prompts that wait to be joined: their allocation, next logits, and prefill times in seconds."""

    allocation: Allocation
    sequence_bytes: int = 0
    prompts: list[WaitingCache] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def _prefill(
    model: LoadedModel, text: torch.Tensor, length: int, contender: Contender, pool: int, new_tokens: int
) -> Filled:
    """Prefill prompts one by one, as long as another prompt of `length` tokens fits the `pool`."""
    devices, filled = gpus(model.model), Filled(Allocation(new_tokens))
    while not filled.prompts or filled.allocation.with_one(filled.prompts[0]).nbytes <= pool:
        begin = now(devices)
        ids = stretch(text, len(filled.prompts), length)
        prompt = WaitingCache(model.model.config, contender.setting, ids.numel(), contender.schedule)
        logits = forward_prompt(model.model, ids, prompt, contender.chunk)
        ended = now(devices)
        allocation = filled.allocation.with_one(prompt)
        filled.sequence_bytes = filled.sequence_bytes or allocation.nbytes
        if allocation.nbytes > pool:
            break
        filled.allocation = allocation
        filled.prompts.append(prompt)
        filled.logits.append(logits)
        filled.seconds.append(ended - begin)
    return filled


def fill_pools(
    model: LoadedModel,
    config: Efficiency,
    by_name: Mapping[str, Contender],
    text: torch.Tensor,
    rows: Sequence[Mapping[str, Any]],
    progress: Progress,
    failures: dict[str, str],
) -> Iterator[list[dict[str, Any]]]:
    """Fill every pool for every setting and length of `rows`, the measurements of one sequence; yield the rows so far.

    Ratios are to the first of `by_name`. Adds to `failures`.
    """
    filled: list[dict[str, Any]] = []
    turns = [
        (row, pool, output)
        for length, pool, row, output in product(config.lengths, config.pools, rows, config.outputs)
        if row["length"] == length
    ]
    with progress.track(f"{model.name} concurrency", turns, "measurements") as steps:
        for alone, pool, output in steps:
            name, length = alone["setting"], alone["length"]
            try:
                found = fill(model, text, length, by_name[name], pool * MEGABYTE, output)
            except (UserError, torch.OutOfMemoryError) as error:
                failures[f"{name} at {length} tokens and {output} new tokens in {pool} MB"] = (
                    str(error) or "out of memory"
                )
                continue
            about = {field: alone[field] for field in Place.__annotations__} | {"pool_mb": pool, **asdict(found)}
            filled.append({**about, "tokens_per_s_alone": 1000 / alone["decode_ms"], "new_tokens": output})
            place = (length, pool, output)
            first = next(row for row in filled if (row["length"], row["pool_mb"], row["new_tokens"]) == place)
            if first["setting"] == next(iter(by_name)) and first["sequences"] and found.tokens_per_s:
                filled[-1]["tokens_per_s_ratio"] = found.tokens_per_s / first["tokens_per_s"]
            yield filled
