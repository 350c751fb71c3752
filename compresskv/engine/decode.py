"""Decode all settings of a prompt greedily as one batch, one row per setting."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.checking import FrozenMapping
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode_eviction import DecodeEviction, PromptEnd
from compresskv.engine.forward import forward_given
from compresskv.engine.forward import forward_tokens as forward_tokens  # the first GPU run imports it from here
from compresskv.engine.graph import Steps
from compresskv.engine.prefill import Prefill, finite, non_finite
from compresskv.engine.rotary import spanning
from compresskv.engine.rows import Source
from compresskv.engine.setting import Setting
from compresskv.generation_defaults import processors
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import Kept

TOGETHER = 8192
"""Maximum number of question tokens, over all settings, in one forward pass."""


@dataclass(frozen=True)
class Stopping:
    """When generation ends: at a token of `ids`, which is kept in the output, or after `max_new_tokens`.

    The first `min_new_tokens` tokens are never tokens of `ids`. `past_ids`: generation continues after the tokens of
    `ids`. `settings`: further settings of a generation config to apply, such as `LoadedModel.generation_defaults`; none
    by default.
    """

    max_new_tokens: int
    ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0
    settings: FrozenMapping = field(default_factory=FrozenMapping)
    past_ids: bool = False


@torch.no_grad()
def decode_cache(prefill: Prefill, kept: Sequence[Kept], room: int, last: bool = False) -> EvictedCache:
    """Create a cache of one row per setting from the tokens that each keeps, with room for `room` new tokens.

    The model must be `attached`, now and while it decodes. `last`: free each layer of the prompt after it is copied, so
    that at most one layer is in memory twice.
    """
    cache = EvictedCache(prefill.cache.config, 1, prefill.length, lambda layer: None)
    sources = []
    for layer in prefill.layers:
        rows: list[tuple[int, Tensor]] = []
        for setting in kept:
            rows += enumerate(setting[layer.index])
        sources.append(Source(layer.keys, layer.values, rows, layer.kv_heads))
    if last:
        prefill.layers.clear()
    cache.hold(sources, prefill.length, room)
    for index, sliding in prefill.cache.sliding.items():
        copy = cache.sliding[index]
        copy.lazy_initialization(sliding.keys, sliding.values)
        copy.keys = sliding.keys.repeat_interleave(len(kept), 0)
        copy.values = sliding.values.repeat_interleave(len(kept), 0)
        copy.cumulative_length = sliding.cumulative_length
    return cache


@torch.no_grad()
def answering(
    model: PreTrainedModel,
    prefill: Prefill,
    kept: Sequence[Kept],
    settings: Sequence[Setting],
    room: int,
    schedule: EvictionSchedule = AFTER_PROMPT,
    last: bool = False,
    watch: Callable[[int, Tensor], None] | None = None,
) -> tuple[EvictedCache, Tensor]:
    """Return `decode_cache` after the question, and the next-token logits of each setting: [rows, vocabulary], float32.

    Without a question, the logits of the prompt are returned. `room` new tokens fit after the question. With a
    `schedule` that decodes, the cache evicts by itself; otherwise `watch` is called as `EvictedLayer.on_decode`, from
    the question on.
    """
    question = prefill.question
    eviction = None
    if schedule.decodes:
        ends = [PromptEnd.of(layer) for layer in prefill.layers]
        eviction = DecodeEviction(schedule, settings, ends, kept, prefill.length)
        room = min(room, schedule.interval)
    cache = decode_cache(prefill, kept, question.numel() + room, last)
    logits = prefill.logits.expand(len(kept), -1)
    for layer in cache.evicting:
        layer.on_decode = watch
    if eviction:
        cache.evict_while_decoding(eviction)
    together = max(1, TOGETHER // len(kept))
    with spanning(model, prefill.end), eviction.paused() if eviction else nullcontext():
        for start in range(0, question.numel(), together):
            part = question[start : start + together]
            logits = forward_given(model, part, len(kept), cache, prefill.length + start, logits_to_keep=1)[:, -1]
    return cache, logits


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    cache: EvictedCache,
    logits: Tensor,
    length: int,
    rows: int,
    stopping: Stopping,
    prompt: Tensor | None = None,
) -> list[list[int]]:
    """Decode greedily `rows` settings that share a prompt of `length` tokens and its next-token `logits`.

    `prompt` [length], int64: its ids, which the settings of `stopping` need. A row that has stopped leaves the batch.
    Returns the new tokens of each row, including the stop token. Raises `NonFiniteError` if a row's logits are not all
    finite.
    """
    banned = sorted(stopping.ids)
    ends = frozenset() if stopping.past_ids else stopping.ids
    process = processors(model, stopping.settings, length, stopping.max_new_tokens, stopping.ids)
    seen = torch.empty(1, 0) if prompt is None else prompt
    if process and seen.numel() != length:
        raise ValueError("the settings of `stopping` need the ids of the prompt: pass prompt")
    seen = seen.expand(rows, -1)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    active = list(range(rows))
    stopped: set[int] = set()
    steps = Steps(model, cache)
    logits = logits.expand(rows, -1)
    for step in range(stopping.max_new_tokens):
        sound = finite(logits)
        if process:
            logits = process(seen, logits)
        if step < stopping.min_new_tokens and banned:
            logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), float("-inf"))
        # −1 marks a row whose logits are not finite, so that one transfer brings both.
        chosen = logits.argmax(-1).masked_fill(sound.logical_not(), -1)
        next_tokens = chosen.tolist()
        for row, token in zip(active, next_tokens, strict=True):
            if row in stopped:
                continue
            if token < 0:
                raise non_finite(model, f"at new token {step + 1}")
            tokens[row].append(token)
            if token in ends:
                stopped.add(row)
        going = [slot for slot, row in enumerate(active) if row not in stopped]
        if not going or step + 1 == stopping.max_new_tokens:
            break
        leaving = len(active) - len(going)
        if leaving and (leaving >= steps.leave_at(len(active)) or min(next_tokens) < 0):
            keep = torch.tensor(going)  # on the CPU, so that it can index tensors on any device
            steps.keep(keep)
            chosen, seen = chosen[keep], seen[keep]
            active = [active[slot] for slot in going]
        if process:
            seen = torch.cat([seen, chosen[:, None]], dim=1)
        logits = steps(chosen, length + step)
    return tokens
