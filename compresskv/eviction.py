"""The shared eviction interface: which prompt tokens does a method keep?

A method is a `Scorer` (how important is each past token of a layer?) and an `Allocator` (how many past tokens may each
layer, or each of its KV heads, keep?). A scorer that needs queries before the observation window has an `Observer`,
which sees the queries of the whole prompt. A scorer that needs hidden states gets the states of a layer before they are
freed. The rest is common code: this file computes attention; selection.py chooses the tokens and ensures that an
evicted token never returns.

Notation: S prompt tokens. The last w are the observation window and always kept; the n = S - w tokens before it are the
*past*. L layers, H_kv KV heads of G query heads each. Budget B = mean number of KV tokens kept per layer and KV head
after the prefill, window included.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskv.errors import UserError, part_name
from compresskv.observation import ObservationConfig
from compresskv.read_only import ReadOnly

Capacity = int | tuple[int, ...]
"""Number of past tokens a layer may keep: one number for all its KV heads, or one per head."""


@dataclass(frozen=True)
class PromptShape:
    """The shape of a prompt, for allocators."""

    layers: int
    kv_heads: int
    length: int
    window: int

    @property
    def past(self) -> int:
        """Number of prompt tokens before the observation window."""
        return max(self.length - self.window, 0)


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Inputs that the attention module of a layer received for a whole prompt. Do not write to these tensors.

    `states` [prompt, hidden]; `cos` and `sin` [prompt, rotary_dim] of the model's RoPE. `module` has the projections.
    `rotary` computes the angles of any positions; None for a model without such a module.
    """

    states: Tensor
    cos: Tensor
    sin: Tensor
    module: Any
    rotary: Any


@dataclass(frozen=True, eq=False)
class LayerPrefill:
    """One layer after it attended to the whole prompt. All tensors are post-RoPE; do not write to these tensors.

    `queries` [q_heads, window, head_dim]: queries of the last prompt positions. The engine keeps the queries of the
    widest window in use, and a scorer gets the queries of its own window. `keys` and `values` [kv_heads, prompt,
    head_dim] are complete. `index` counts the layers that evict.

    `observed`: the observer of each `ObservingScorer`, after all queries of the prompt. A scorer gets only its own
    observer. `hidden`: set only for a scorer that `needs_hidden_states`, and only until the next layer is computed.
    `scored`: the scores of these scorers, which are computed while `hidden` is set, or their errors.
    `answer` [q_heads, tokens, head_dim]: the queries by which the full cache's greedy answer reads the prompt. Set only
    for a scorer that `needs_answer`.
    """

    index: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    observed: Mapping["Scorer", Any] = field(default_factory=dict, repr=False)
    hidden: HiddenStates | None = field(default=None, repr=False)
    scored: Mapping["Scorer", "LayerScores | Exception"] = field(default_factory=dict, repr=False)
    answer: Tensor | None = field(default=None, repr=False)
    shown: ReadOnly = field(default_factory=ReadOnly, init=False, repr=False)
    _attention: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)
    _whole: "LayerPrefill | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for what in ("queries", "keys", "values"):
            self.shown.show(what, getattr(self, what))
        if self.hidden is not None:
            self.shown.show("the hidden states", self.hidden.states, self.hidden.cos, self.hidden.sin)
        if self.answer is not None:
            self.shown.show("the queries of the answer", self.answer)

    def seen_by(self, scorer: "Scorer") -> "LayerPrefill":
        """Return the layer as `scorer` sees it: its queries, its observer, and the attention that all scorers share."""
        rows = min(max(scorer.window, 1), self.queries.shape[1])
        observed = {scorer: self.observed[scorer]} if scorer in self.observed else {}
        hidden = self.hidden if needs_hidden_states(scorer) else None
        answer = self.answer if needs_answer(scorer) else None
        seen = replace(
            self, queries=self.queries[:, -rows:], observed=observed, hidden=hidden, scored={}, answer=answer
        )
        object.__setattr__(seen, "_whole", self)
        return seen

    def finite(self) -> Tensor:
        """Return whether queries, keys, values and the computed attention are finite: bool [], on their device."""
        parts = (self.queries, self.keys, self.values, *self._attention.values())
        # NaN propagates through both max and min. This uses few launches, since it runs for every layer.
        return torch.cat([torch.stack(part.aminmax()).float() for part in parts]).isfinite().all()

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[0]

    def window_attention(self, window: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Return attention weights of the last `window` prompt positions over the prompt: [q_heads, window, prompt].

        Logits are computed in `dtype` (None: the model's dtype), the softmax in float32, and the result is cast to
        `dtype` (SnapKV, Li et al. 2024). Computed once for the widest window, because the rows of a softmax are
        independent.
        """
        if window > self.queries.shape[1]:
            raise ValueError(f"the prefill kept {self.queries.shape[1]} query positions, window={window} needs more")
        if self._whole is not None:
            return self._whole.window_attention(window, dtype)
        dtype = dtype or self.queries.dtype
        if dtype not in self._attention:
            rows = self.queries.shape[1]
            # Query heads kG … kG+G−1 share KV head k, so a plain view puts the group on the row axis.
            queries = self.queries.to(dtype).reshape(self.kv_heads, -1, self.queries.shape[-1])
            logits = queries @ self.keys.to(dtype).transpose(1, 2)
            logits = logits.mul_(self.scaling).view(self.queries.shape[0], rows, self.length)
            future = torch.ones(rows, rows, dtype=torch.bool, device=logits.device).triu_(1)
            logits[..., -rows:].masked_fill_(future, torch.finfo(dtype).min)
            self._attention[dtype] = logits.softmax(-1, dtype=torch.float32).to(dtype)
            self.shown.show("the attention", self._attention[dtype])
        return self._attention[dtype][:, self.queries.shape[1] - window :]


@dataclass(frozen=True)
class Observation(ObservationConfig):
    """The observation window's attention over the past, pooled, in `dtype` (None: the model's dtype)."""

    dtype: torch.dtype | None = torch.float32

    def attention(self, layer: LayerPrefill) -> Tensor:
        """Return the attention of the window over the past, without renormalisation: [q_heads, window, past]."""
        return layer.window_attention(self.window, self.dtype)[..., : -self.window]

    def pool(self, scores: Tensor) -> Tensor:
        """Pool over the last axis and preserve its length. The average divides by `kernel` at the edges too."""
        if self.kernel == 1 or scores.shape[-1] == 0:
            return scores
        pooling = F.avg_pool1d if self.pooling == "average" else F.max_pool1d
        return pooling(scores, self.kernel, stride=1, padding=self.kernel // 2)


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Importance of a layer's past tokens: `scores` [kv_heads, past]. A subclass may hold more for its allocator.

    `contest` [kv_heads, past]: the scores with which an allocator compares KV heads, if they differ from `scores`.
    """

    nested: ClassVar[bool] = True
    """Whether the tokens kept with a smaller capacity are always a subset of the tokens kept with a larger capacity."""

    scores: Tensor
    contest: Tensor | None = field(default=None, kw_only=True)

    @cached_property
    def shown(self) -> ReadOnly:
        """The tensors of these scores, guarded against writes by allocators."""
        shown = ReadOnly()
        shown.show("scores", *(value for value in vars(self).values() if isinstance(value, Tensor)))
        return shown

    @property
    def shared(self) -> bool:
        """Whether all heads share one row of scores in memory."""
        return self.scores.shape[0] == 1 or self.scores.stride(0) == 0

    @property
    def nbytes(self) -> int:
        """Size in bytes of the scores and of their ranking, including a ranking that is not computed yet."""
        rows = 1 if self.shared else self.scores.shape[0]
        contest = 0 if self.contest is None else self.contest.untyped_storage().nbytes()
        return self.scores.untyped_storage().nbytes() + rows * self.scores.shape[1] * torch.int64.itemsize + contest

    @cached_property
    def ranking(self) -> Tensor:
        """Past positions of each KV head, best first, ties to the lower index: [kv_heads, past], int64.

        One sort serves every budget. `selection.refuse_nan` refuses NaN.
        """
        scores = self.scores[:1] if self.shared else self.scores
        order = scores.float().sort(dim=-1, descending=True, stable=True).indices
        self.shown.show("the ranking", order)
        return order.expand(self.scores.shape[0], -1)

    @cached_property
    def best_heads(self) -> Tensor:
        """KV head of each contest score, best score first, ties to the lower head: [kv_heads * past], int16.

        Kept on the CPU, so that counting for any budget does not synchronise with the device again.
        """
        contest = self.scores if self.contest is None else self.contest
        order = contest.float().flatten().sort(descending=True, stable=True).indices
        heads = (order // max(contest.shape[1], 1)).to(torch.int16).cpu()
        self.shown.show("the ranking", heads)
        return heads

    def order(self, capacity: Capacity) -> Tensor:
        """Return the past positions of each KV head in keeping order, [kv_heads, past].

        A head that may keep n tokens keeps the first n. If the scores are `nested`, the tokens kept with a smaller
        capacity are therefore a subset of the tokens kept with a larger capacity.
        """
        return self.ranking

    @property
    def heads_differ(self) -> bool:
        """Whether KV heads can be compared: false if they all share one row of scores."""
        contest = self.scores if self.contest is None else self.contest
        return contest.shape[0] == 1 or contest.stride(0) != 0


class Scorer(Protocol):
    """How important is each past token of a layer? A scorer is hashable, so that settings can share its scores."""

    @property
    def window(self) -> int:
        """Number of tokens at the end of the prompt that are not scored but always kept."""
        ...

    def __call__(self, layer: LayerPrefill) -> LayerScores: ...


class Observer(Protocol):
    """Accumulates, for one layer, what a scorer needs from all queries of the prompt.

    Queries arrive in order, one forward pass at a time: the whole prompt, or the chunks of a chunked prefill. The
    attention of all queries to all keys is never held in memory at once.
    """

    def __call__(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        """Observe the newest `queries` [q_heads, new, head_dim] and all `keys` so far [kv_heads, seen, head_dim]."""
        ...


@runtime_checkable
class ContinuingObserver(Observer, Protocol):
    """An observer that also works while tokens are evicted during decoding."""

    def only(self, heads: Sequence[int], kept: Sequence[Tensor]) -> "Observer":
        """Return an observer of these KV heads and, for each, these tokens: sorted indices, int64, equal in number."""
        ...


@runtime_checkable
class ObservingScorer(Protocol):
    """A scorer that needs queries outside its window. `LayerPrefill.observed` contains its observer."""

    def observer(self) -> Observer:
        """Create an observer for one layer of one prompt."""
        ...


@runtime_checkable
class HiddenStateScorer(Protocol):
    """A scorer that may need `LayerPrefill.hidden`. If this is true, the prompt must pass in one forward."""

    @property
    def needs_hidden_states(self) -> bool: ...


def needs_hidden_states(scorer: Scorer) -> bool:
    """Return whether `scorer` reads the hidden states of the prompt."""
    return isinstance(scorer, HiddenStateScorer) and scorer.needs_hidden_states


@runtime_checkable
class AnswerScorer(Protocol):
    """A scorer that needs `LayerPrefill.answer`, if this is true. Only the shared path has it: there, the full cache
    answers before a prompt is scored.
    """

    @property
    def needs_answer(self) -> bool: ...


def needs_answer(scorer: Scorer | None) -> bool:
    """Whether `scorer` reads the queries of the full cache's answer."""
    return isinstance(scorer, AnswerScorer) and scorer.needs_answer


def observers(scorers: Iterable[Scorer]) -> dict[Scorer, Observer]:
    """Create an observer for each of `scorers` that is an `ObservingScorer`."""
    return {scorer: scorer.observer() for scorer in scorers if isinstance(scorer, ObservingScorer)}


def observe(observers: Mapping[Scorer, Observer], queries: Tensor, keys: Tensor, scaling: float) -> None:
    """Pass new queries and keys to each of `observers`. Raises `UserError` if one writes to them."""
    for scorer, observer in observers.items():
        shown = ReadOnly()
        shown.show("queries", queries)
        shown.show("keys", keys)
        with torch.inference_mode(False), torch.no_grad():
            observer(queries, keys, scaling)
        shown.refuse_writes("method.scorer", scorer)


def score(scorer: Scorer, layer: LayerPrefill) -> LayerScores:
    """Return the scores of `layer` by `scorer`.

    Raises `UserError` if the scorer writes to a tensor of the layer, or if the scores do not match the layer's past.
    """
    if (made := layer.scored.get(scorer)) is not None:
        if isinstance(made, Exception):
            raise made
        return made
    with torch.inference_mode(False), torch.no_grad():
        scores = scorer(layer.seen_by(scorer))
    layer.shown.refuse_writes("method.scorer", scorer)
    _refuse_other_scores(scores, scorer, (layer.kv_heads, layer.length - scorer.window))
    scores.shown.refuse_writes("method.scorer", scorer)  # read-only from here on
    return scores


def score_at_once(scorers: Iterable[Scorer], layer: LayerPrefill) -> LayerPrefill:
    """Return `layer` without its hidden states, with the scores of the `scorers` that need hidden states.

    An error of a scorer is raised later by `score`, so that it does not stop the other scorers.
    """
    scored: dict[Scorer, LayerScores | Exception] = {}
    passing = replace(layer)  # the attention of the window goes with this copy
    for scorer in scorers:
        try:
            scored[scorer] = score(scorer, passing)
        except Exception as error:
            scored[scorer] = error
    return replace(layer, hidden=None, scored=scored)


def _refuse_other_scores(scores: Any, scorer: Scorer, shape: tuple[int, int]) -> None:
    """Raise `UserError` unless `scores` are `LayerScores` of this shape. Other shapes would not match the budget."""
    if not isinstance(scores, LayerScores):
        found = type(scores).__name__
    elif tuple(scores.scores.shape) != shape:
        found = f"scores of the shape {list(scores.scores.shape)}"
    else:
        return
    raise UserError(
        "method.scorer",
        f"return LayerScores of the shape {list(shape)}, for each KV head and each prompt token before the observation "
        "window",
        value=part_name(scorer),
        why=f"it returns {found}",
    )


def refuse_writes(scores: Iterable[LayerScores], part: str, *called: object) -> None:
    """Raise `UserError` if one of the parts in `called` wrote to scores."""
    for layer in scores:
        layer.shown.refuse_writes(part, *called)


class Allocator(Protocol):
    """How many past tokens, without the window, may each layer, or each of its KV heads, keep?"""

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> Sequence[Capacity]:
        """Return the capacities, in past tokens, of the layers seen so far."""
        ...


@dataclass(frozen=True)
class EvictionMethod:
    """A scorer and an allocator, such as CompressKV or SnapKV. Raises `UserError` if the scorer is not hashable."""

    scorer: Scorer
    allocator: Allocator

    def __post_init__(self) -> None:
        try:
            hash(self.scorer)
        except TypeError as error:
            raise UserError(
                "method.scorer",
                "make it a frozen dataclass whose fields are numbers, texts, or tuples of these",
                value=type(self.scorer).__name__,
                why=f"it is not hashable ({error})",
            ) from None

    @property
    def window(self) -> int:
        return self.scorer.window

    def check(self, budget: int) -> None:
        """Raise `UserError` unless `budget` (tokens) exceeds the observation window."""
        if budget <= self.window:
            raise UserError(
                "budget",
                f"set budget to {self.window + 1} or more",
                value=budget,
                why=f"the observation window of {self.window} tokens is always kept",
            )


BLOCK = 64
"""Queries per block when the attention of all queries is computed."""


def causal_attention(queries: Tensor, keys: Tensor, scaling: float) -> Iterator[Tensor]:
    """Yield the attention weights of `queries` [q_heads, new, head_dim] over `keys` [kv_heads, seen, head_dim].

    The queries are at the last positions of `keys`. Each block has at most `BLOCK` queries: [q_heads, block, keys up to
    the block's last], float32. Keys later than a query have weight 0.
    """
    kv_heads, seen, head_dim = keys.shape
    keys = keys.float()
    end = seen - queries.shape[1]
    for block in queries.split(BLOCK, 1):
        rows = block.shape[1]
        end += rows
        logits = block.float().reshape(kv_heads, -1, head_dim) @ keys[:, :end].transpose(1, 2)
        logits = logits.mul_(scaling).view(-1, rows, end)
        future = torch.ones(rows, rows, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., -rows:].masked_fill_(future, float("-inf"))
        yield logits.softmax(-1)


def group_mean(per_query_head: Tensor, kv_heads: int) -> Tensor:
    """Average over the G query heads kG … kG+G−1 of each KV head k: [q_heads, ...] -> [kv_heads, ...]."""
    return per_query_head.unflatten(0, (kv_heads, -1)).mean(1)
