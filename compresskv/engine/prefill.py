"""One forward pass over the prompt, which serves every setting.

The prompt's hidden states do not depend on the method, since eviction happens after a layer has attended to the whole
prompt. Each setting selects its tokens from the complete layers.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.backends import backend_of
from compresskv.engine.cache import EvictedCache
from compresskv.engine.hidden import hidden_states
from compresskv.engine.memory import memory_as
from compresskv.engine.prefixes import PrefixStore, chunk_names
from compresskv.engine.rotary import regime
from compresskv.engine.rows import by_size
from compresskv.engine.setting import FULL as FULL  # the first GPU run imports it from here
from compresskv.engine.setting import Setting
from compresskv.errors import NonFiniteError, PromptError, UserError
from compresskv.eviction import (
    EvictionMethod,
    LayerPrefill,
    LayerScores,
    PromptShape,
    Scorer,
    needs_hidden_states,
    refuse_writes,
    score,
    score_at_once,
)
from compresskv.installed import cache_argument
from compresskv.selection import Kept, counts, keep_all, refuse_nan, running_capacities, select


class PrefillError(PromptError):
    """Raised if no setting of this prompt can run, because a part that all settings share has failed."""


class NonFinitePrefillError(NonFiniteError, PrefillError):
    """Raised if the prompt's own logits are not finite."""


@dataclass(eq=False)
class Prefill:
    """The compressed part of a prompt, `ids` [prompt], after its one forward pass.

    `layers` are complete; `logits` [vocabulary] predict the next token. `question`: ids [question] that follow the
    compressed tokens. Every setting reads them with the tokens it kept. Empty if the whole prompt is compressed.
    """

    length: int
    layers: list[LayerPrefill]
    logits: Tensor
    cache: EvictedCache
    ids: Tensor
    question: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    _scores: dict[Scorer, list[LayerScores]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Number of tokens of the whole prompt, including the question."""
        return self.length + self.question.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of the prompt's keys and values and of its scores."""
        layers = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        scores = sum(sum(layer.nbytes for layer in scored) for scored in self._scores.values())
        return layers + self.cache.sliding_bytes + scores

    def row_bytes(self, kept: Kept, room: int) -> int:
        """Return the bytes that a setting takes in a batch with `room` for new tokens after the question."""
        rows = list(map(by_size, counts(kept)))
        return self.cache.allocated_bytes(rows, room + self.question.numel()) + self.cache.sliding_bytes

    def with_answer(self, queries: Sequence[Tensor]) -> "Prefill":
        """Return this prompt, whose layers have the `queries` [q_heads, tokens, head_dim] of its answer.

        It has the scores so far. New scores do not reach other prompts that share this context.
        """
        layers = [replace(layer, answer=of_layer) for layer, of_layer in zip(self.layers, queries, strict=True)]
        return replace(self, layers=layers, _scores=dict(self._scores))

    def score(self, settings: Sequence[Setting]) -> None:
        """Score every layer for the `settings` that evict. Methods with equal scorers share their scores."""
        wanted = dict.fromkeys(chain.from_iterable(setting.scorers(self.length) for setting in settings))
        scorers = [scorer for scorer in wanted if scorer not in self._scores]
        if not scorers:
            return
        scores: dict[Scorer, list[LayerScores]] = {scorer: [] for scorer in scorers}
        for layer in self.layers:
            # All scorers share the attention of the layer's window, which is freed with this copy.
            passing = replace(layer)
            for scorer in scorers:
                scores[scorer].append(score(scorer, passing))
        for layer in self.layers:  # a scorer may have kept a reference to an earlier layer
            layer.shown.refuse_writes("method.scorer", *scorers)
        for scorer, scored in scores.items():
            refuse_writes(scored, "method.scorer", *scorers)
            if self.layers:  # empty if all layers have sliding windows
                refuse_nan(scored, scorer, self.layers[0].keys.dtype, lambda: map(_finite, self.layers))
        self._scores.update(scores)

    def scores(self, setting: Setting) -> list[LayerScores]:
        """Return the scores by which `setting` evicts; empty if it does not evict."""
        return self._scores.get(setting.method.scorer, []) if setting.method else []

    def kept(self, setting: Setting) -> Kept:
        """Return the prompt positions that `setting` keeps."""
        method, budget = setting.method, setting.tokens(self.length)
        if not self.layers or method is None or budget is None or setting.keeps_all(self.length):
            return [keep_all(layer.kv_heads, self.length, layer.keys.device) for layer in self.layers]
        self.score([setting])
        scores = self._scores[method.scorer]
        shape = prompt_shape(self.cache, self.layers[0], method)
        capacities = running_capacities(method, scores, shape, budget)
        refuse_writes(scores, "method.allocator", method.allocator)
        kept = [select(s, c, self.length) for s, c in zip(scores, capacities, strict=True)]
        refuse_writes(scores, "method.scorer", method.scorer)
        return kept


def _finite(layer: LayerPrefill) -> Tensor:
    """Return whether a layer, and the attention of its last queries in their own dtype, is finite: bool []."""
    layer.window_attention(layer.queries.shape[1])
    return layer.finite()


def prompt_shape(cache: EvictedCache, layer: LayerPrefill, method: EvictionMethod) -> PromptShape:
    """Return the shape that an allocator receives for the prompt of `layer`."""
    return PromptShape(len(cache.evicting), layer.kv_heads, layer.length, method.window)


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    window: int,
    chunk: int | None = None,
    scorers: Collection[Scorer] = (),
    prefixes: PrefixStore | None = None,
) -> Prefill:
    """Run the prompt once, and keep the whole prompt and the queries of its last `window` positions.

    Pass `scorers` that `score` will use if they have an observer or need hidden states. Observers see all queries, and
    scorers that need hidden states score each layer as soon as it is computed. `ids` [prompt], int64. `chunk` limits
    the tokens of one forward pass, and with it the memory of activations; the result is the same. Whole chunks are read
    from and added to `prefixes`; the result is bit for bit the same. `model` must be `attached`. Raises `UserError` for
    an empty prompt.
    """
    layers: list[LayerPrefill] = []
    at_once = list(filter(needs_hidden_states, scorers))

    def complete(layer: LayerPrefill) -> None:
        layers.append(score_at_once(at_once, layer) if at_once else layer)

    cache = EvictedCache(model.config, window, ids.numel(), complete, scorers)
    logits = forward_prompt(model, ids, cache, chunk, prefixes)
    return Prefill(ids.numel(), layers, logits, cache, ids)


@torch.no_grad()
def forward_prompt(
    model: PreTrainedModel,
    ids: Tensor,
    cache: EvictedCache,
    chunk: int | None,
    prefixes: PrefixStore | None = None,
) -> Tensor:
    """Feed `ids` [prompt] through the model and the empty `cache`. Return the next token's logits [vocabulary].

    `prefixes` as in `prefill`. Raises `NonFiniteError` unless all logits are finite.
    """
    if ids.numel() == 0:
        raise UserError("prompt", "give at least one token", why="empty")
    too_long = PrefillError(
        "prompt",
        "set prefill_chunk, for example to 4096, or use shorter prompts",
        why=f"out of memory in the prefill of {ids.numel()} tokens",
    )
    names = chunk_names(ids, chunk, regime(model, ids.numel())) if chunk and prefixes else []
    begin = prefixes.restore(cache, names, chunk, ids.numel()) if chunk and prefixes else 0
    try:
        for start in range(begin, ids.numel(), chunk or ids.numel()):
            part = ids[start : start + (chunk or ids.numel())]
            positions = torch.arange(start, start + part.numel(), device=ids.device)
            with memory_as(too_long), hidden_states(model, cache):
                out = model(
                    input_ids=part[None],
                    position_ids=positions[None],
                    use_cache=True,
                    logits_to_keep=1,
                    **{cache_argument(model): cache},
                )
            if chunk and prefixes:
                prefixes.computed += part.numel()
                if (end := start + chunk) < ids.numel():
                    prefixes.add(cache, names[: end // chunk], start, end)
    finally:
        backend_of(model.config).end_prefill()
    if any(layer.seen != ids.numel() for layer in cache.evicting):
        raise UserError(
            "model", "choose another model", value=type(model).__name__, why="it does not attend through its cache"
        )
    logits = out.logits[0, -1].float()
    if not finite(logits):
        raise non_finite(model, f"after a prompt of {ids.numel()} tokens", NonFinitePrefillError)
    return logits


def finite(logits: Tensor) -> Tensor:
    """Return whether all logits of a row are finite: [..., vocabulary] float32 -> [...] bool, in one pass.

    A sum is not finite if any part is not finite; finite float32 logits never sum to more than float32 holds.
    """
    return logits.sum(-1).isfinite()


def non_finite(model: PreTrainedModel, where: str, kind: type[NonFiniteError] = NonFiniteError) -> NonFiniteError:
    """Return the error of a model whose logits are not finite. `where` says after which input."""
    return kind(
        "model.dtype",
        "set it to float32 or bfloat16; if it is already set, check the model's weights",
        value=str(model.dtype).removeprefix("torch."),
        why=f"{type(model).__name__} gives logits that are not finite {where}",
    )
