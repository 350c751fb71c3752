"""From scores and capacities to kept prompt positions: common code of all methods.

The top past tokens of each KV head by score, ties to the lower index, and the observation window. Layers are allocated
as they are seen, and a layer never gets back what it has given up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskv.errors import NonFiniteError
from compresskv.eviction import Capacity, EvictionMethod, LayerScores, PromptShape

Kept = list[list[Tensor]]
"""Kept prompt positions: for each layer that evicts, for each KV head, a sorted int64 tensor."""


def tighten(kept: Sequence[Capacity], answer: Sequence[Capacity], past: int) -> list[Capacity]:
    """What each layer keeps after one more layer was seen, given what the earlier ones kept and the new `answer`.

    A token given up cannot come back, so each layer keeps the element-wise minimum of all answers, clipped to the
    `past` (CAKE's cascade, Qin et al. 2025).
    """
    return [_minimum(a, b) for a, b in zip([*kept, past], answer, strict=True)]


def running_capacities(
    method: EvictionMethod, scores: Sequence[LayerScores], shape: PromptShape, budget: int
) -> list[Capacity]:
    """What each layer keeps, in past tokens, when the allocator is asked after every layer, as in a prefill."""
    kept: list[Capacity] = []
    for seen in range(1, len(scores) + 1):
        kept = tighten(kept, method.allocator(scores[:seen], shape, budget), shape.past)
    return kept


def _minimum(a: Capacity, b: Capacity) -> Capacity:
    if isinstance(a, int):
        return min(a, b) if isinstance(b, int) else tuple(min(a, head) for head in b)
    if isinstance(b, int):
        return tuple(min(head, b) for head in a)
    return tuple(min(x, y) for x, y in zip(a, b, strict=True))


def select(scores: LayerScores, capacity: Capacity, length: int) -> list[Tensor]:
    """Kept prompt positions of one layer: for each KV head a sorted int64 tensor, the window included.

    The top `capacity` past tokens by score, ties to the lower index, and the positions after the past.
    """
    ranking = scores.order(capacity)
    heads, past = ranking.shape
    window = torch.arange(past, length, device=ranking.device)
    if isinstance(capacity, int):
        # Heads that share their scores share what they keep.
        rows = ranking[:1] if scores.shared else ranking
        chosen = torch.cat([rows[:, :capacity], window.expand(len(rows), -1)], dim=-1).sort(dim=-1).values
        return list(chosen.expand(heads, -1).unbind())
    if len(capacity) != heads:
        raise ValueError(f"{len(capacity)} capacities for {heads} KV heads")
    best = ranking[:, : max(capacity)]
    beyond = torch.arange(best.shape[1], device=best.device) >= torch.tensor(capacity, device=best.device)[:, None]
    # All heads in one sort: what a head may not keep goes to its end.
    chosen = torch.cat([best.masked_fill(beyond, length), window.expand(heads, -1)], dim=-1).sort(dim=-1).values
    return [row[: count + length - past] for row, count in zip(chosen.unbind(), capacity, strict=True)]


def refuse_nan(scores: Sequence[LayerScores]) -> None:
    """Raise `NonFiniteError` if a score is not a number; asks each device once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for layer in scores:
        flags = by_device.setdefault(layer.scores.device, [])
        flags += [scores.isnan().any() for scores in (layer.scores, layer.contest) if scores is not None]
    if any(torch.stack(flags).any() for flags in by_device.values()):
        raise NonFiniteError(
            "a scorer returned NaN, since the attention logits overflow: set model.dtype=float32 or bfloat16"
        )


def keep_all(kv_heads: int, length: int, device: torch.device | None = None) -> list[Tensor]:
    """Every position, for each KV head."""
    return [torch.arange(length, device=device)] * kv_heads


def counts(kept: Kept) -> list[list[int]]:
    """How many positions are kept, [layer][KV head]."""
    return [[positions.numel() for positions in layer] for layer in kept]
