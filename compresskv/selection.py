"""From scores and capacities to kept prompt positions: common code of all methods.

Each KV head keeps its top past tokens by score, ties to the lower index, and the observation window. Layers are
allocated as they are seen, and an evicted token never returns.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from compresskv.errors import NonFiniteError, UserError, part_name, readable
from compresskv.eviction import Capacity, EvictionMethod, LayerScores, PromptShape

Kept = list[list[Tensor]]
"""Kept prompt positions: for each layer that evicts, for each KV head, a sorted int64 tensor."""


def tighten(kept: Sequence[Capacity], answer: Sequence[Capacity], past: int) -> list[Capacity]:
    """Update the capacities `kept` of the earlier layers with the allocator's `answer` after one more layer.

    An evicted token cannot come back, so each layer keeps the element-wise minimum of all answers, clipped to the
    `past` (CAKE's cascade, Qin et al. 2025).
    """
    return [_minimum(a, b) for a, b in zip([*kept, past], answer, strict=True)]


def running_capacities(
    method: EvictionMethod, scores: Sequence[LayerScores], shape: PromptShape, budget: int
) -> list[Capacity]:
    """Return each layer's past tokens when the allocator is called after every layer, as in a prefill."""
    kept: list[Capacity] = []
    for seen in range(1, len(scores) + 1):
        kept = tighten(kept, answered(method, scores[:seen], shape, budget), shape.past)
    return kept


def answered(method: EvictionMethod, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[Capacity]:
    """Return the allocator's capacities. Raises `UserError` unless they are integers for each layer seen so far."""
    answer = method.allocator(scores, shape, budget)
    try:
        capacities = [_whole(capacity, shape.kv_heads) for capacity in answer]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            "method.allocator",
            "for each layer, return a number of past tokens (a whole number, not negative), or a tuple of "
            f"{shape.kv_heads} such numbers, one per KV head",
            value=part_name(method.allocator),
            why=f"it returns {readable(repr(answer))}",
        ) from error
    if len(capacities) != len(scores):
        raise UserError(
            "method.allocator",
            "return one capacity per layer in `scores`",
            value=part_name(method.allocator),
            why=f"it returns {len(capacities)} capacities for {len(scores)} layers",
        )
    return capacities


def _whole(capacity: Any, heads: int) -> Capacity:
    """Convert a capacity of any integer type. Raises `TypeError` or `ValueError` for other types."""
    if isinstance(capacity, (tuple, list)):
        if len(capacity) != heads:
            raise ValueError("not one for each head")
        numbers = tuple(map(index, capacity))
        if min(numbers) < 0:
            raise ValueError("negative")
        return numbers
    if index(capacity) < 0:
        raise ValueError("negative")
    return index(capacity)


def _minimum(a: Capacity, b: Capacity) -> Capacity:
    if isinstance(a, int):
        return min(a, b) if isinstance(b, int) else tuple(min(a, head) for head in b)
    if isinstance(b, int):
        return tuple(min(head, b) for head in a)
    return tuple(min(x, y) for x, y in zip(a, b, strict=True))


def select(scores: LayerScores, capacity: Capacity, length: int) -> list[Tensor]:
    """Return the kept prompt positions of one layer: for each KV head a sorted int64 tensor, including the window.

    These are the top `capacity` past tokens by score, ties to the lower index, and the positions after the past.
    """
    ranking = scores.order(capacity)
    heads, past = ranking.shape
    window = torch.arange(past, length, device=ranking.device)
    if isinstance(capacity, int):
        # Heads that share their scores keep the same tokens.
        rows = ranking[:1] if scores.shared else ranking
        chosen = torch.cat([rows[:, :capacity], window.expand(len(rows), -1)], dim=-1).sort(dim=-1).values
        return list(chosen.expand(heads, -1).unbind())
    if len(capacity) != heads:
        raise ValueError(f"{len(capacity)} capacities for {heads} KV heads")
    best = ranking[:, : max(capacity)]
    beyond = torch.arange(best.shape[1], device=best.device) >= torch.tensor(capacity, device=best.device)[:, None]
    # Sort all heads at once: masked positions move to the end of each row.
    chosen = torch.cat([best.masked_fill(beyond, length), window.expand(heads, -1)], dim=-1).sort(dim=-1).values
    return [row[: count + length - past] for row, count in zip(chosen.unbind(), capacity, strict=True)]


def refuse_nan(
    scores: Sequence[LayerScores],
    scorer: object = "the scorer",
    dtype: torch.dtype = torch.float32,
    finite: Callable[[], Iterable[Tensor]] = tuple,
) -> None:
    """Raise `NonFiniteError` if a score of `scorer` is NaN. Synchronises with each device once.

    The error names the cause: the attention (in `dtype`) of a layer that is not `finite`, or the scorer.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for layer in scores:
        flags = by_device.setdefault(layer.scores.device, [])
        flags += [scores.isnan().any() for scores in (layer.scores, layer.contest) if scores is not None]
    if not any(torch.stack(flags).any() for flags in by_device.values()):
        return
    for place, fine in enumerate(finite()):
        if not fine:
            raise NonFiniteError(
                "model.dtype",
                "set model.dtype=float32 or bfloat16; if it is already set, check the model's weights",
                value=str(dtype).removeprefix("torch."),
                why=f"the attention of layer {place} is not finite, so {part_name(scorer)} returns NaN",
            )
    raise NonFiniteError(
        "method.scorer",
        "correct its scores",
        value=part_name(scorer),
        why="it returns NaN, although queries, keys and attention are finite",
    )


def keep_all(kv_heads: int, length: int, device: torch.device | None = None) -> list[Tensor]:
    """Return every position, for each KV head."""
    return [torch.arange(length, device=device)] * kv_heads


def counts(kept: Kept) -> list[list[int]]:
    """Return how many positions are kept, [layer][KV head]."""
    return [[positions.numel() for positions in layer] for layer in kept]
