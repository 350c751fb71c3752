"""Prefill once, evict many, decode all settings of a prompt as one batch; or evict inside each layer.

The prompt's hidden states do not depend on the method, since eviction happens after a layer has attended to the whole
prompt. So one prefill serves every setting (*shared*); evicting each layer as soon as its attention is done
(*in-layer*) gives the same kept tokens without ever holding the full cache of all layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.cache import EvictedCache, FoldedRows
from compresskv.errors import UserError
from compresskv.eviction import (
    EvictionMethod,
    LayerPrefill,
    LayerScores,
    PromptShape,
    Scorer,
    keep_all,
    running_capacities,
    select,
)
from compresskv.memory import SHARE, batches, free_bytes

Kept = list[list[Tensor]]
"""Kept prompt positions: for each layer that evicts, for each KV head, a sorted int64 tensor."""


class PrefillError(UserError):
    """No setting of this prompt can run: what all of them share has failed."""


@dataclass(frozen=True)
class Setting:
    """One method at one budget (tokens, the observation window included); a budget of None keeps the whole prompt."""

    method: EvictionMethod
    budget: int | None

    def __post_init__(self) -> None:
        if self.budget is not None:
            self.method.check(self.budget)

    def keeps_all(self, length: int) -> bool:
        """A prompt that fits the budget, or the window, is kept whole in every layer."""
        return self.budget is None or length <= max(self.budget, self.method.window)


@dataclass(frozen=True)
class Stopping:
    """Generation ends with a token of `ids`, which is kept in the output, or after `max_new_tokens`.

    The first `min_new_tokens` tokens are never of `ids`.
    """

    max_new_tokens: int
    ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Generation:
    """What one setting generated, and what it kept: `kept` counts tokens, [layer][KV head]; `cache_bytes` = theirs.

    `together`: the places, in the list of settings, of those that were decoded in the same batch.
    """

    tokens: list[int]
    kept: list[list[int]]
    cache_bytes: int
    together: tuple[int, ...] = field(default=(0,), compare=False)

    @property
    def realised_budget(self) -> float:
        """Mean number of prompt tokens kept per layer and KV head."""
        counts = [count for layer in self.kept for count in layer]
        return sum(counts) / max(len(counts), 1)


@dataclass(eq=False)
class Prefill:
    """A prompt after its one forward pass: complete layers, logits [vocabulary] of the next token."""

    length: int
    layers: list[LayerPrefill]
    logits: Tensor
    cache: EvictedCache
    _scores: dict[Scorer, list[LayerScores]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the prompt's keys and values and of what was scored."""
        layers = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        scores = sum(found.nbytes for scored in self._scores.values() for found in scored)
        return layers + self.cache.sliding_bytes + scores

    def row_bytes(self, kept: Kept, room: int) -> int:
        """Bytes that a setting takes in a batch with `room` for new tokens."""
        return self.cache.allocated_bytes(counts(kept), room) + self.cache.sliding_bytes

    def score(self, settings: Sequence[Setting]) -> None:
        """Score every layer for those of `settings` that evict; methods with equal scorers share their scores."""
        wanted = dict.fromkeys(s.method.scorer for s in settings if not s.keeps_all(self.length))
        scorers = [scorer for scorer in wanted if scorer not in self._scores]
        if not scorers:
            return
        found: dict[Scorer, list[LayerScores]] = {scorer: [] for scorer in scorers}
        for layer in self.layers:
            # All scorers share the attention of the layer's window, which then goes with this copy.
            passing = replace(layer)
            for scorer in scorers:
                found[scorer].append(scorer(passing))
        self._scores.update(found)

    def kept(self, setting: Setting) -> Kept:
        """The prompt positions that `setting` keeps."""
        if not self.layers or setting.budget is None or setting.keeps_all(self.length):
            return [keep_all(layer.kv_heads, self.length, layer.keys.device) for layer in self.layers]
        self.score([setting])
        scores = self._scores[setting.method.scorer]
        shape = prompt_shape(self.cache, self.layers[0], setting.method)
        capacities = running_capacities(setting.method, scores, shape, setting.budget)
        return [select(s, c, self.length) for s, c in zip(scores, capacities, strict=True)]


def prompt_shape(cache: EvictedCache, layer: LayerPrefill, method: EvictionMethod) -> PromptShape:
    """What an allocator is told of the prompt that `layer` is one of."""
    return PromptShape(len(cache.evicting), layer.kv_heads, layer.length, method.window)


@torch.no_grad()
def prefill(model: PreTrainedModel, ids: Tensor, window: int, chunk: int | None = None) -> Prefill:
    """Run the prompt once, keeping all of it and the queries of its last `window` positions.

    `ids` [prompt], int64. `chunk` bounds the tokens of one forward pass, and with it the memory of activations; the
    result is the same. `model` must be `attached`. Raises `UserError` for an empty prompt.
    """
    layers: list[LayerPrefill] = []
    cache = EvictedCache(model.config, max(window, 1), ids.numel(), layers.append)
    logits = forward_prompt(model, ids, cache, chunk)
    return Prefill(ids.numel(), layers, logits, cache)


def forward_prompt(model: PreTrainedModel, ids: Tensor, cache: EvictedCache, chunk: int | None) -> Tensor:
    """Feed `ids` [prompt] through the model and the empty `cache`; returns the next token's logits [vocabulary]."""
    if ids.numel() == 0:
        raise UserError("the prompt is empty: give at least one token")
    for start in range(0, ids.numel(), chunk or ids.numel()):
        part = ids[start : start + (chunk or ids.numel())]
        positions = torch.arange(start, start + part.numel(), device=ids.device)
        try:
            out = model(
                input_ids=part[None],
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except torch.OutOfMemoryError as error:
            raise PrefillError(
                f"out of memory in the prefill of {ids.numel()} tokens: set prefill_chunk, for example to 4096, or use "
                "shorter prompts"
            ) from error
    if any(layer.seen != ids.numel() for layer in cache.evicting):
        raise UserError(f"{type(model).__name__} does not attend through its cache: choose another model")
    return out.logits[0, -1].float()


@torch.no_grad()
def decode_cache(prefill: Prefill, kept: Sequence[Kept], room: int) -> EvictedCache:
    """A cache of one row a setting, holding what each keeps, with room for `room` new tokens."""
    cache = EvictedCache(prefill.cache.config, 1, prefill.length, lambda layer: None)
    for source, layer in zip(prefill.layers, cache.evicting, strict=True):
        layer.seen = prefill.length
        rows = [
            (source.keys[head], source.values[head], positions)
            for setting in kept
            for head, positions in enumerate(setting[source.index])
        ]
        layer.rows = FoldedRows(rows, source.kv_heads, room)
    for index, sliding in prefill.cache.sliding.items():
        copy = cache.sliding[index]
        copy.lazy_initialization(sliding.keys, sliding.values)
        copy.keys = sliding.keys.repeat_interleave(len(kept), 0)
        copy.values = sliding.values.repeat_interleave(len(kept), 0)
        copy.cumulative_length = sliding.cumulative_length
    return cache


@torch.no_grad()
def decode(
    model: PreTrainedModel, cache: EvictedCache, logits: Tensor, length: int, rows: int, stopping: Stopping
) -> list[list[int]]:
    """Greedy decoding of `rows` settings that share a prompt of `length` tokens and its next-token `logits`.

    A row that has stopped leaves the batch. Returns the new tokens of each row, the stop token included.
    """
    banned = sorted(stopping.ids)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    active = list(range(rows))
    logits = logits.expand(rows, -1)
    for step in range(stopping.max_new_tokens):
        if step < stopping.min_new_tokens and banned:
            logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), float("-inf"))
        chosen = logits.argmax(-1)
        for row, token in zip(active, chosen.tolist(), strict=True):
            tokens[row].append(token)
        going = [slot for slot, row in enumerate(active) if tokens[row][-1] not in stopping.ids]
        if not going or step + 1 == stopping.max_new_tokens:
            break
        if len(going) < len(active):
            keep = torch.tensor(going)  # on the CPU, from where it indexes tensors of any device
            cache.batch_select_indices(keep)
            chosen = chosen[keep]
            active = [active[slot] for slot in going]
        positions = torch.full((len(active), 1), length + step, device=logits.device)
        out = model(
            input_ids=chosen[:, None], position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits = out.logits[:, -1].float()
    return tokens


def generate(
    model: PreTrainedModel,
    ids: Tensor,
    settings: Sequence[Setting],
    stopping: Stopping,
    chunk: int | None = None,
    memory: int | None = None,
) -> list[Generation]:
    """Shared path: one prefill of `ids` [prompt], then all settings decode as one batch, full caches apart.

    Settings that exceed `memory` (bytes for the prompt and one batch; None: what is free) decode in several batches.
    """
    window = max((setting.method.window for setting in settings), default=1)
    prompt = prefill(model, ids, window, chunk)
    try:
        prompt.score(settings)
    except torch.OutOfMemoryError as error:
        raise PrefillError(
            f"out of memory while scoring a prompt of {ids.numel()} tokens: use shorter prompts or model.device=map"
        ) from error
    kept = {place: prompt.kept(setting) for place, setting in enumerate(settings)}
    limit = int(SHARE * free_bytes(model)) if memory is None else memory - prompt.nbytes
    sizes = [prompt.row_bytes(kept[place], stopping.max_new_tokens) for place in range(len(settings))]
    found: dict[int, Generation] = {}
    for batch in decode_batches(settings, sizes, limit):
        found |= _decode_together(model, prompt, {place: kept[place] for place in batch}, stopping)
    return [found[place] for place in range(len(settings))]


def decode_batches(settings: Sequence[Setting], sizes: Sequence[int], limit: int) -> list[list[int]]:
    """The places in `settings` of those that decode together, given what each takes and the `limit`, in bytes.

    Each full cache is alone, so that in any dtype its tokens are those of a run without any other setting.
    """
    full = [place for place, setting in enumerate(settings) if setting.budget is None]
    others = [place for place, setting in enumerate(settings) if setting.budget is not None]
    split = batches([sizes[place] for place in others], limit)
    return [[others[i] for i in batch] for batch in split] + [[place] for place in full]


def counts(kept: Kept) -> list[list[int]]:
    """How many positions are kept, [layer][KV head]."""
    return [[positions.numel() for positions in layer] for layer in kept]


def _decode_together(
    model: PreTrainedModel, prompt: Prefill, kept: Mapping[int, Kept], stopping: Stopping
) -> dict[int, Generation]:
    """Decode the settings at these places as one batch, or in halves where the device's memory does not hold it."""
    places = tuple(kept)
    try:
        cache = decode_cache(prompt, list(kept.values()), stopping.max_new_tokens)
        tokens = decode(model, cache, prompt.logits, prompt.length, len(places), stopping)
    except torch.OutOfMemoryError as error:
        cache = None
        if len(places) == 1:
            raise UserError(
                f"out of memory while decoding one setting of a prompt of {prompt.length} tokens: "
                "use shorter prompts, a smaller model.dtype or model.device=map"
            ) from error
    else:
        tallies = [counts(setting) for setting in kept.values()]
        return {
            place: Generation(row, tally, prompt.cache.kept_bytes(tally), places)
            for place, row, tally in zip(places, tokens, tallies, strict=True)
        }
    # Outside the handler, whose traceback would keep the failed batch alive.
    halves = places[: len(places) // 2], places[len(places) // 2 :]
    first, second = (_decode_together(model, prompt, {p: kept[p] for p in half}, stopping) for half in halves)
    return first | second
