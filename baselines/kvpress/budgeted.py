"""Presses whose scores depend on the share of dropped tokens, so that `score` is called again for each budget.

The part that needs the model is computed once, when the layer is scored. Each budget then repeats the rest of the
press.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from baselines.kvpress.choices import BasePress, PressValue, base_press
from baselines.kvpress.installed import kvpress, kvpress_version
from baselines.kvpress.press import PressScorer, told, without_hidden_states
from baselines.kvpress.scorers import Count, Share, Size
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import Capacity, LayerPrefill, LayerScores
from compresskv.methods import declares


def ratio_of(kept: int, length: int) -> float:
    """Return the compression ratio at which kvpress keeps `kept` of `length` tokens.

    kvpress rounds down, so the ratio asks for slightly more.
    """
    return 1 - (kept + 1e-6) / length


@dataclass(frozen=True, eq=False)
class BudgetedScores(LayerScores):
    """Scores with a function `kept`: for a number of tokens, it returns the tokens that each head keeps, bool
    [kv_heads, past].

    If it keeps fewer tokens than this number, the best other tokens by `scores` fill the rest.
    """

    nested: ClassVar[bool] = False

    kept: Callable[[int], Tensor] = field(default=lambda number: torch.empty(0), kw_only=True, repr=False)

    def order(self, capacity: Capacity) -> Tensor:
        """Return the kept tokens of each head first, then the other tokens, both by score: [kv_heads, past], int64."""
        if isinstance(capacity, int):
            return kept_first(self._kept(capacity), self.ranking)
        rows = {number: self._kept(number) for number in set(capacity)}
        return kept_first(torch.stack([rows[number][head] for head, number in enumerate(capacity)]), self.ranking)

    def _kept(self, number: int) -> Tensor:
        if 0 < number < self.scores.shape[1]:
            return self.kept(number)
        return torch.zeros(self.scores.shape, dtype=torch.bool, device=self.scores.device)


def kept_first(kept: Tensor, ranking: Tensor) -> Tensor:
    """Return `ranking` [kv_heads, past] with the `kept` tokens, bool [kv_heads, past], before the other tokens."""
    others = ~kept.gather(1, ranking)
    return ranking.gather(1, others.sort(dim=1, stable=True).indices)


def top(scores: Tensor, number: int) -> Tensor:
    """Mark the `number` best tokens of each head, ties to the lower index: bool [kv_heads, past]."""
    best = scores.float().sort(dim=-1, descending=True, stable=True).indices[:, :number]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, best, True)


def like(scores: Tensor, width: int = 1) -> Tensor:
    """Create a stand-in for keys or values [1, kv_heads, prompt, width], for a press that only reads their shape."""
    return scores.new_zeros(1, 1, 1, 1).expand(1, *scores.shape, width)


@dataclass(frozen=True)
class StreamingScorer(PressScorer):
    def __call__(self, layer: LayerPrefill) -> LayerScores:
        length, device = layer.length, layer.keys.device
        recency = torch.arange(length, device=device, dtype=torch.float32)
        shape = like(recency[None])

        def kept(number: int) -> Tensor:
            press = self.made()
            press.compression_ratio = ratio_of(number, length)
            with told(self.press, length):
                return top(press.score(None, None, shape, shape, None, {})[0], number).expand(layer.kv_heads, -1)

        return BudgetedScores(recency.expand(layer.kv_heads, -1), kept=kept)


@declares(window=0, heads="alike")
def streaming_llm(context: Context, *, n_sink: Count) -> StreamingScorer:
    return StreamingScorer("StreamingLLMPress", (("n_sink", n_sink),), kvpress_version(), needs_hidden_states=False)


class Blended(BudgetedScores):
    """Compactor's scores, whose blending depends on the budget. They cannot be used to compare heads."""

    @property
    def heads_differ(self) -> bool:
        raise UserError(
            "method.scorer.blending",
            "set it to a number",
            value=None,
            why="without a number, the scores depend on the budget, so an allocator cannot compare heads with them",
        )


@dataclass(frozen=True)
class CompactorScorer(PressScorer):
    """Compactor. Computes the leverage and attention scores once, and blends them for each budget."""

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores, blended = self.blends(layer)
        if dict(self.fields)["blending"] is not None:
            return LayerScores(scores)
        return Blended(scores, kept=lambda number: top(blended(number), number))

    def blends(self, layer: LayerPrefill) -> tuple[Tensor, Callable[[int], Tensor]]:
        """Return scores [kv_heads, prompt] at ratio 0, and a function from the number of kept tokens to scores."""
        press = self.made()
        children = ("_leverage_press", "_non_causal_press")
        found = {name: Remembering(getattr(press, name)) for name in children}
        vars(press).update(found)
        scores = self.score(press, layer)
        angles = like(scores[:1])[0]
        shape, states = like(scores), like(scores[:1])[0]

        def blended(number: int) -> Tensor:
            press.compression_ratio = ratio_of(number, layer.length)
            with told(self.press, layer.length):
                return press.score(None, states, shape, shape, None, {"position_embeddings": (angles, angles)})[0]

        return scores, blended


class Remembering:
    """Wraps a press so that it computes its scores only once."""

    def __init__(self, press: Any):
        self.press, self.compression_ratio = press, 0.0
        self.scores: Tensor | None = None

    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.scores is None:
            self.scores = self.press.score(*args, **kwargs)
        assert self.scores is not None
        return self.scores


@declares(window=0, prompt="whole")
def compactor(
    context: Context,
    *,
    sink_size_start: Count,
    sink_size_end: Count,
    chunk_size: Size,
    sketch_dimension: Size,
    blending: Share | None,
) -> CompactorScorer:
    fields = {
        "sink_size_start": sink_size_start,
        "sink_size_end": sink_size_end,
        "chunk_size": chunk_size,
        "sketch_dimension": sketch_dimension,
        "blending": blending,
    }
    return CompactorScorer("CompactorPress", tuple(sorted(fields.items())), kvpress_version())


@dataclass(frozen=True)
class CriticalScorer(PressScorer):
    """CriticalKV on top of the scores of another press."""

    base: PressScorer = field(kw_only=True)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores, norms = self.base.whole(layer), projected_norms(layer)
        second = (scores + dict(self.fields)["epsilon"]) * norms
        module = projecting(layer.kv_heads, scores)

        def kept(number: int) -> Tensor:
            press = kvpress().CriticalKVPress(given_scores(scores), **dict(self.fields))
            press.compression_ratio = ratio_of(number, layer.length)
            with told(self.press, layer.length):
                return top(press.score(module, None, like(scores), norms[None, ..., None], None, {})[0], number)

        return BudgetedScores(second, kept=kept)


def given(score: Callable[..., Tensor]) -> Any:
    """Create a kvpress press whose `score` is this function."""

    class Given(kvpress().ScorerPress):  # type: ignore[misc]
        def score(self, *args: Any, **kwargs: Any) -> Tensor:
            return score(*args, **kwargs)

    return Given()


def given_scores(scores: Tensor) -> Any:
    """Create a press that returns these scores, [kv_heads, prompt], for any input."""
    return given(lambda *args, **kwargs: scores[None].clone())  # presses modify them


def projected_norms(layer: LayerPrefill) -> Tensor:
    """Return the L1 norm of each value after the output projection, mean over query heads: [kv_heads, prompt]."""
    if layer.hidden is None:
        raise without_hidden_states("CriticalKVPress")
    projection, head_dim = layer.hidden.module.o_proj, layer.values.shape[-1]
    hidden_size, channels = projection.weight.shape
    heads = channels // head_dim
    # Some configurations lack head_dim, which kvpress reads.
    config = SimpleNamespace(num_attention_heads=heads, head_dim=head_dim, hidden_size=hidden_size)
    module = SimpleNamespace(config=config, o_proj=projection, num_key_value_groups=heads // layer.kv_heads)
    with told("CriticalKVPress", layer.length):
        return kvpress().CriticalKVPress.vwl1norm(layer.values[None], module)[0]


def projecting(kv_heads: int, like: Tensor) -> Any:
    """Create a stand-in attention module that leaves norms, given as values of one channel, unchanged."""
    config = SimpleNamespace(num_attention_heads=kv_heads, head_dim=1, hidden_size=1, _attn_implementation="given")
    projection = SimpleNamespace(weight=like.new_ones(1, kv_heads))
    return SimpleNamespace(config=config, o_proj=projection, num_key_value_groups=1, head_dim=1, layer_idx=0)


def unmasked(press: Any, scores: Tensor, number: int, norms: Tensor | None = None) -> Tensor:
    """Return the tokens that a press which masks keys leaves, on average `number` per KV head: bool [kv_heads, prompt].

    `norms` [kv_heads, prompt] of the projected values, for a press that reads them.
    """
    heads, length = scores.shape
    module = projecting(heads, scores)
    press.compression_ratio = ratio_of(number, length)
    with told(type(press).__name__, length):
        values = like(scores) if norms is None else norms[None, ..., None]
        press.compress(module, None, like(scores), values, None, {})
    _, masked_heads, masked = module.masked_key_indices
    kept = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    kept[masked_heads, masked] = False
    return kept


@declares(window=0, prompt="whole")
def criticalkv(
    context: Context,
    *,
    press: BasePress,
    settings: dict[str, PressValue],
    epsilon: Share,
    first_stage_ratio: Annotated[float, Ge(0), Le(1)],
) -> CriticalScorer:
    """Build the scorer. The scores of `press` with `settings` are weighted by the projected values."""
    fields = (("epsilon", epsilon), ("first_stage_ratio", first_stage_ratio))
    return CriticalScorer("CriticalKVPress", fields, kvpress_version(), base=base_press(context, press, settings))
