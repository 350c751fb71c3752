"""The shared eviction interface: which prompt tokens does a method keep?

A method is a `Scorer` (how important is each past token of a layer?) and an `Allocator` (how many past tokens may each
layer, or each of its KV heads, keep?). A scorer that needs queries before the observation window has an `Observer`,
which sees the queries of the whole prompt; one that needs hidden states gets those of a layer before they are freed.
Everything else is common code: attention in this file; the choice of tokens, and the rule that an evicted token never
returns, in selection.py.

Notation: S prompt tokens, of which the last w are the observation window and always kept; the n = S - w others are the
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
"""Past tokens a layer may keep: one number for all its KV heads, or one for each."""


@dataclass(frozen=True)
class PromptShape:
    """The shape of a prompt, for allocators."""

    layers: int
    kv_heads: int
    length: int
    window: int

    @property
    def past(self) -> int:
        """Prompt tokens outside the observation window."""
        return max(self.length - self.window, 0)


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """What the attention module of a layer received with a whole prompt; do not write to any of it.

    `states` [prompt, hidden]; `cos` and `sin` [prompt, rotary_dim] of the model's RoPE. `module` has the projections,
    `rotary` gives the angles of any positions; None for a model without one.
    """

    states: Tensor
    cos: Tensor
    sin: Tensor
    module: Any
    rotary: Any


@dataclass(frozen=True, eq=False)
class LayerPrefill:
    """One layer after it attended to the whole prompt; all tensors are post-RoPE.

    `queries` [q_heads, window, head_dim]: queries of the last prompt positions. A scorer gets those of its own window;
    the engine keeps those of the widest window in use. `keys` and `values` [kv_heads, prompt, head_dim] are complete.
    `index` counts the layers that evict. `observed`: the observer of each scorer that has one, after all queries of the
    prompt; a scorer gets only its own. `hidden`: only for a scorer that `needs_hidden_states`, and only while this is
    the last layer that was computed. `scored`: what such scorers made of it then, or the error of each. `answer`
    [q_heads, tokens, head_dim]: the queries by which the full cache's greedy answer reads the prompt, only for a scorer
    that `needs_answer`. Do not write to any tensor.
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
        """The layer for `scorer`: the queries in its window, its observer, and the attention that all scorers share."""
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
        """Whether queries, keys, values and the attention that was computed are finite: bool [], on their device."""
        parts = (self.queries, self.keys, self.values, *self._attention.values())
        # NaN is the largest and the smallest of all; few launches, since every layer is asked.
        return torch.cat([torch.stack(part.aminmax()).float() for part in parts]).isfinite().all()

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[0]

    def window_attention(self, window: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Attention weights of the last `window` prompt positions over the prompt: [q_heads, window, prompt].

        Logits are computed in `dtype` (None: the model's), the softmax in float32, and the result is cast to `dtype`
        (SnapKV, Li et al. 2024). Computed once for the widest window, because the rows of a softmax are independent.
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
    """The observation window's attention over the past, pooled, in `dtype` (None: the model's)."""

    dtype: torch.dtype | None = torch.float32

    def attention(self, layer: LayerPrefill) -> Tensor:
        """Attention of the window over the past, without renormalisation: [q_heads, window, past]."""
        return layer.window_attention(self.window, self.dtype)[..., : -self.window]

    def pool(self, scores: Tensor) -> Tensor:
        """Pooling over the last axis, length preserved; the average divides by `kernel` at the edges too."""
        if self.kernel == 1 or scores.shape[-1] == 0:
            return scores
        pooling = F.avg_pool1d if self.pooling == "average" else F.max_pool1d
        return pooling(scores, self.kernel, stride=1, padding=self.kernel // 2)


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Importance of a layer's past tokens, `scores` [kv_heads, past]; a subclass may hold more for its allocator.

    `contest` [kv_heads, past]: the scores by which an allocator compares KV heads, if they differ from `scores`.
    """

    nested: ClassVar[bool] = True
    """Whether what is kept with a smaller capacity is always a part of what is kept with a larger one."""

    scores: Tensor
    contest: Tensor | None = field(default=None, kw_only=True)

    @cached_property
    def shown(self) -> ReadOnly:
        """The tensors of these scores; allocators must not write to them."""
        shown = ReadOnly()
        shown.show("scores", *(value for value in vars(self).values() if isinstance(value, Tensor)))
        return shown

    @property
    def shared(self) -> bool:
        """Whether all heads have the same row of scores, in one place."""
        return self.scores.shape[0] == 1 or self.scores.stride(0) == 0

    @property
    def nbytes(self) -> int:
        """Bytes of the scores and of their ranking, whether or not it was made yet."""
        rows = 1 if self.shared else self.scores.shape[0]
        contest = 0 if self.contest is None else self.contest.untyped_storage().nbytes()
        return self.scores.untyped_storage().nbytes() + rows * self.scores.shape[1] * torch.int64.itemsize + contest

    @cached_property
    def ranking(self) -> Tensor:
        """Past positions of each KV head, best first, ties to the lower index: [kv_heads, past], int64.

        One sort serves every budget. NaN is refused by `selection.refuse_nan`.
        """
        scores = self.scores[:1] if self.shared else self.scores
        order = scores.float().sort(dim=-1, descending=True, stable=True).indices
        self.shown.show("the ranking", order)
        return order.expand(self.scores.shape[0], -1)

    @cached_property
    def best_heads(self) -> Tensor:
        """KV head of each contest score, best score first, ties to the lower head: [kv_heads * past], int16.

        On the CPU, so that counting for any budget does not wait for the device again.
        """
        contest = self.scores if self.contest is None else self.contest
        order = contest.float().flatten().sort(descending=True, stable=True).indices
        heads = (order // max(contest.shape[1], 1)).to(torch.int16).cpu()
        self.shown.show("the ranking", heads)
        return heads

    def order(self, capacity: Capacity) -> Tensor:
        """Past positions of each KV head, [kv_heads, past]: a head that may keep n tokens keeps the first n.

        So the tokens kept with a smaller capacity are a subset of those kept with a larger one, if it is `nested`.
        """
        return self.ranking

    @property
    def heads_differ(self) -> bool:
        """Whether KV heads can be compared: false if they all share one row of scores."""
        contest = self.scores if self.contest is None else self.contest
        return contest.shape[0] == 1 or contest.stride(0) != 0


class Scorer(Protocol):
    """How important is each past token of a layer? Hashable, so that settings can share its scores."""

    @property
    def window(self) -> int:
        """Tokens at the end of the prompt that are not scored but always kept."""
        ...

    def __call__(self, layer: LayerPrefill) -> LayerScores: ...


class Observer(Protocol):
    """Accumulates, for one layer, what a scorer needs from all queries of the prompt.

    Queries arrive in order, one forward pass at a time: the whole prompt, or the chunks of a chunked prefill. The
    attention of all queries to all keys never exists at once.
    """

    def __call__(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        """`queries` [q_heads, new, head_dim] of the newest positions, `keys` [kv_heads, seen, head_dim] of all."""
        ...


@runtime_checkable
class ContinuingObserver(Observer, Protocol):
    """An observer that also works while tokens are evicted during decoding."""

    def only(self, heads: Sequence[int], kept: Sequence[Tensor]) -> "Observer":
        """A new observer of these KV heads and, of each, these tokens: sorted places, int64, equally many."""
        ...


@runtime_checkable
class ObservingScorer(Protocol):
    """A scorer that needs queries outside its window; `LayerPrefill.observed` has its observer."""

    def observer(self) -> Observer:
        """A new observer, for one layer of one prompt."""
        ...


@runtime_checkable
class HiddenStateScorer(Protocol):
    """A scorer that needs `LayerPrefill.hidden`, of a prompt that passes in one forward, if this is true."""

    @property
    def needs_hidden_states(self) -> bool: ...


def needs_hidden_states(scorer: Scorer) -> bool:
    """Whether `scorer` reads the hidden states of the prompt."""
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
    """A new observer for each of `scorers` that has one."""
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
    """The scores of `layer` by `scorer`.

    Raises `UserError` if it writes to a tensor of the layer, or if its scores are not those of the layer's past.
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
    """`layer` without its hidden states, and with the scores by `scorers`, which need them.

    An error of a scorer is raised by `score`, so that it stops no other.
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
    """Raise `UserError` unless these are `LayerScores` of this shape: others keep more or less than the budget."""
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
    """How many past tokens, the window excluded, may each layer, or each of its KV heads, keep?"""

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> Sequence[Capacity]:
        """Capacities, in past tokens, of the layers seen so far."""
        ...


@dataclass(frozen=True)
class EvictionMethod:
    """A scorer and an allocator, such as CompressKV or SnapKV. Raises `UserError` for a scorer that cannot be
    hashed.
    """

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
                why=f"it cannot be a key of its scores ({error})",
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
"""Queries per block, where the attention of all queries is computed."""


def causal_attention(queries: Tensor, keys: Tensor, scaling: float) -> Iterator[Tensor]:
    """Attention weights of `queries` [q_heads, new, head_dim], the last positions of `keys` [kv_heads, seen, head_dim].

    In blocks of at most `BLOCK` queries: [q_heads, block, keys up to the block's last], float32. Keys later than a
    query have weight 0.
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
    """Mean over the G query heads kG … kG+G−1 of each KV head k: [q_heads, ...] -> [kv_heads, ...]."""
    return per_query_head.unflatten(0, (kv_heads, -1)).mean(1)
