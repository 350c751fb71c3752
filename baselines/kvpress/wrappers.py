"""Presses that choose tokens in `compress`, from the scores of another press.

`compress` receives positions instead of keys, so it returns the positions that it keeps. It runs once for each budget,
on the scores that the other press gave when the layer was computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from baselines.kvpress.budgeted import (
    BudgetedScores,
    CompactorScorer,
    compactor,
    given,
    given_scores,
    kept_first,
    projected_norms,
    projecting,
    ratio_of,
    unmasked,
)
from baselines.kvpress.choices import BasePress, KeyPress, PressValue, base_press
from baselines.kvpress.installed import kvpress, kvpress_version
from baselines.kvpress.press import PressScorer, seeded, told
from baselines.kvpress.scorers import Count, Share, Size
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import Capacity, LayerPrefill, LayerScores
from compresskv.methods import declares


def base(context: Context, *, press: BasePress, settings: dict[str, PressValue]) -> PressScorer:
    """Build the scorer of `press` with `settings`, for AdaKV's allocator."""
    return base_press(context, press, settings)


@dataclass(frozen=True)
class WrappedScorer(PressScorer):
    """A press that chooses tokens by the scores of `base`."""

    base: PressScorer = field(kw_only=True)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores = self.base.whole(layer)
        return BudgetedScores(scores, kept=lambda number: self.chosen(lambda: given_scores(scores), scores, number))

    def chosen(self, base: Callable[[], Any], scores: Tensor, number: int) -> Tensor:
        """Return which tokens `compress` keeps if it may keep `number`, using the press from `base`: bool [kv_heads,
        prompt].

        A press that keeps whole chunks rounds. It is first asked for one chunk more, and then for fewer until the
        result fits.
        """
        heads, length = scores.shape
        positions = torch.arange(length, device=scores.device).expand(heads, -1)[None, ..., None]
        asked = min(number + dict(self.fields).get("chunk_length", 0), length - 1)
        while asked > 0:
            press = getattr(kvpress(), self.press)(base(), **dict(self.fields))
            press.compression_ratio = ratio_of(asked, length)
            states = scores.new_zeros(1, length, heads)
            with told(self.press, length):
                module = projecting(heads, scores)
                kept, _ = press.compress(module, states, positions, positions, None, {})
            if (more := kept.shape[2] - number) <= 0:
                chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
                return chosen.scatter_(1, kept[0, ..., 0], True)
            asked -= more
        raise UserError(
            "budget",
            "set a larger budget, or smaller chunks",
            value=number,
            why=f"kvpress's {self.press} keeps at least {kept.shape[2]} of {length} tokens",
        )


@dataclass(frozen=True)
class ChunkScorer(WrappedScorer):
    """Scores each chunk separately. `compress` runs once with the layer, and the scores of its chunks are stored."""

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        press, found = self.base.made(), list[Tensor]()

        def remember(*args: Any) -> Tensor:
            found.append(press.score(*args))
            return found[-1]

        wrapper = getattr(kvpress(), self.press)(given(remember), **dict(self.fields))
        wrapper.compression_ratio = 0.5  # arbitrary: the scores do not depend on it
        self.base.score(SimpleNamespace(score=wrapper.compress), layer)
        scores = torch.cat(found, dim=-1)[0]

        def again() -> Any:
            parts = iter(found)
            return given(lambda *args: next(parts))

        return BudgetedScores(scores, kept=lambda number: self.chosen(again, scores, number))


@dataclass(frozen=True)
class BlockScorer(WrappedScorer):
    """Scores keys again for each budget, because the kept tokens of a block are compared with the next block."""

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        press = self.base.made()
        keys, values = layer.keys[None], layer.values[None]

        def of_positions(module: Any, states: Tensor, positions: Tensor, *args: Any) -> Tensor:
            places = positions.expand(*positions.shape[:3], keys.shape[-1])
            with seeded(layer):
                return press.score(None, None, keys.gather(2, places), values.gather(2, places), None, {})

        scores = self.base.whole(layer)
        return BudgetedScores(scores, kept=lambda number: self.chosen(lambda: given(of_positions), scores, number))


@dataclass(frozen=True, eq=False)
class SharingScores(LayerScores):
    """Scores of KV heads that share the budget, and the tokens that each head keeps, bool [kv_heads, past].

    `press`: the kvpress press that decides how heads share. `alpha_safeguard`: the part of the budget that every head
    keeps.
    """

    nested: ClassVar[bool] = False

    kept: Callable[[int], Tensor] = field(default=lambda number: torch.empty(0), kw_only=True, repr=False)
    alpha_safeguard: float = field(default=0.2, kw_only=True)
    press: str = field(default="CriticalAdaKVPress", kw_only=True)

    def shares(self, number: int, alpha_safeguard: float) -> tuple[int, ...]:
        """Return each head's kept tokens for a mean of `number`. Tied scores count for the head that keeps them."""
        if alpha_safeguard != self.alpha_safeguard:
            raise self.other_allocator()
        return tuple(self.kept(number).sum(1).tolist())

    def other_allocator(self) -> UserError:
        return UserError(
            "method/allocator",
            f"use method/allocator=kvpress/adakv with alpha_safeguard={self.alpha_safeguard}",
            why=f"kvpress's {self.press} shares the budget between heads by itself",
        )

    def order(self, capacity: Capacity) -> Tensor:
        """Return the tokens that kvpress keeps first: [kv_heads, past]. Raises `UserError` for other capacities."""
        heads, past = self.scores.shape
        shares = (capacity,) * heads if isinstance(capacity, int) else capacity
        if sum(shares) in (0, heads * past):
            return self.ranking
        kept = self.kept(sum(shares) // heads)
        if kept.sum(1).tolist() != list(shares):
            raise self.other_allocator()
        return kept_first(kept, self.ranking)


@dataclass(frozen=True)
class CriticalAdaScorer(PressScorer):
    """CriticalAdaKV on top of the scores of `base`."""

    base: PressScorer = field(kw_only=True)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores, norms = self.base.whole(layer), projected_norms(layer)

        def kept(number: int) -> Tensor:
            press = kvpress().CriticalAdaKVPress(given_scores(scores), **dict(self.fields))
            return unmasked(press, scores, number, norms)

        return SharingScores(scores, kept=kept, alpha_safeguard=dict(self.fields)["alpha_safeguard"])


@dataclass(frozen=True)
class AdaCompactorScorer(CompactorScorer):
    """AdaKV on top of Compactor, whose scores depend on the budget: KV heads compete with the scores of each budget."""

    alpha_safeguard: float = field(kw_only=True)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores, blended = self.blends(layer)

        def kept(number: int) -> Tensor:
            press = kvpress().AdaKVPress(given_scores(blended(number)), alpha_safeguard=self.alpha_safeguard)
            return unmasked(press, scores, number)

        return SharingScores(scores, kept=kept, alpha_safeguard=self.alpha_safeguard, press="AdaKVPress")


def wrapped(
    kind: type[WrappedScorer], press: str, context: Context, base: str, settings: dict[str, PressValue], **fields: Any
) -> WrappedScorer:
    """Build the scorer of kvpress's `press` around the press `base` with `settings`."""
    scorer = base_press(context, base, settings)
    return kind(
        press,
        tuple(sorted(fields.items())),
        kvpress_version(),
        needs_hidden_states=scorer.needs_hidden_states,
        base=scorer,
    )


@declares(window=0)
def chunk(context: Context, *, press: BasePress, settings: dict[str, PressValue], chunk_length: Size) -> WrappedScorer:
    return wrapped(ChunkScorer, "ChunkPress", context, press, settings, chunk_length=chunk_length)


@declares(window=0)
def chunkkv(
    context: Context, *, press: BasePress, settings: dict[str, PressValue], chunk_length: Size
) -> WrappedScorer:
    return wrapped(WrappedScorer, "ChunkKVPress", context, press, settings, chunk_length=chunk_length)


@declares(window=0)
def entropy_gated_chunkkv(
    context: Context,
    *,
    press: BasePress,
    settings: dict[str, PressValue],
    chunk_length: Annotated[int, Ge(2), Le(2**31 - 1)],
    low_entropy_chunk_length: Size,
) -> WrappedScorer:
    if low_entropy_chunk_length >= chunk_length:
        raise UserError(
            "method.scorer.low_entropy_chunk_length",
            f"set it below chunk_length={chunk_length}",
            value=low_entropy_chunk_length,
        )
    fields = {"chunk_length": chunk_length, "low_entropy_chunk_length": low_entropy_chunk_length}
    return wrapped(WrappedScorer, "EntropyGatedChunkKVPress", context, press, settings, **fields)


@declares(window=0)
def block(context: Context, *, press: KeyPress, settings: dict[str, PressValue], block_size: Size) -> WrappedScorer:
    """Build the scorer. `press` must read only keys and values, since each budget scores them again."""
    return wrapped(BlockScorer, "BlockPress", context, press, settings, block_size=block_size)


@declares(window=0, prompt="whole")
def critical_adakv(
    context: Context,
    *,
    press: BasePress,
    settings: dict[str, PressValue],
    alpha_safeguard: Annotated[float, Ge(0), Le(1)],
    epsilon: Share,
    first_stage_ratio: Annotated[float, Ge(0), Le(1)],
) -> CriticalAdaScorer:
    fields = {"alpha_safeguard": alpha_safeguard, "epsilon": epsilon, "first_stage_ratio": first_stage_ratio}
    scorer = base_press(context, press, settings)
    return CriticalAdaScorer("CriticalAdaKVPress", tuple(sorted(fields.items())), kvpress_version(), base=scorer)


@declares(window=0, prompt="whole")
def adakv_compactor(
    context: Context,
    *,
    sink_size_start: Count,
    sink_size_end: Count,
    chunk_size: Size,
    sketch_dimension: Size,
    blending: Share | None,
    alpha_safeguard: Annotated[float, Ge(0), Le(1)],
) -> AdaCompactorScorer:
    base = compactor(
        context,
        sink_size_start=sink_size_start,
        sink_size_end=sink_size_end,
        chunk_size=chunk_size,
        sketch_dimension=sketch_dimension,
        blending=blending,
    )
    return AdaCompactorScorer(base.press, base.fields, base.version, alpha_safeguard=alpha_safeguard)
