"""The shared path: prefill once, evict many, decode all settings of a prompt as one batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.cache import EvictedCache
from compresskv.engine.contexts import ContextStore
from compresskv.engine.decode import Stopping, answering, decode
from compresskv.engine.decode_eviction import refuse_scores
from compresskv.engine.fidelity import Fidelity, fidelity
from compresskv.engine.memory import SHARE, batches, free_bytes, memory_as, ran_out
from compresskv.engine.prefill import Prefill, PrefillError, prefill
from compresskv.engine.prefixes import PrefixStore
from compresskv.engine.rotary import refuse_crossing
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import PromptError
from compresskv.eviction import needs_answer
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import Kept, counts


@dataclass(frozen=True)
class Generation:
    """What one setting generated and kept.

    `kept` counts compressed tokens, [layer][KV head]. `cache_bytes`: bytes of their keys and values. `sliding_bytes`:
    bytes of the sliding-window layers, which no setting evicts. `together`: indices, in the list of settings, of the
    settings that were decoded in the same batch. `peak_kept`: the largest mean number of tokens held per layer and KV
    head, including new tokens; None unless its eviction continues while decoding. `evicted_later`: whether it evicted
    anything while decoding. `fidelity`: None unless requested. `positions`: the compressed tokens that `kept` counts.
    """

    tokens: list[int]
    kept: list[list[int]]
    cache_bytes: int
    sliding_bytes: int = field(default=0, compare=False)
    together: tuple[int, ...] = field(default=(0,), compare=False)
    peak_kept: float | None = None
    evicted_later: bool = False
    fidelity: Fidelity | None = None
    positions: Kept = field(default_factory=list, compare=False, repr=False)

    @property
    def realised_budget(self) -> float:
        """Mean number of compressed tokens kept per layer and KV head."""
        return sum(map(sum, self.kept)) / max(sum(map(len, self.kept)), 1)


def generate(
    model: PreTrainedModel,
    ids: Tensor,
    settings: Sequence[Setting],
    stopping: Stopping,
    *,
    chunk: int | None = None,
    memory: int | None = None,
    reference: Sequence[int] | None = None,
    prefixes: PrefixStore | None = None,
    context: int | None = None,
    contexts: ContextStore | None = None,
    schedule: EvictionSchedule = AFTER_PROMPT,
    along: int | None = None,
) -> list[Generation]:
    """Prefill `ids` [prompt] once, then decode all settings as one batch, and full caches separately.

    `context`: only the first `context` tokens are prefilled and compressed. All settings then read the remaining
    tokens, the question, with the tokens they kept. None: the whole prompt is compressed. `contexts` keeps a context's
    prefill for its next question. With a `schedule` that decodes, eviction continues while tokens are generated.

    Settings that exceed `memory` (bytes for the prompt and one batch; None: the free memory) decode in several batches.
    With a `reference` answer (token ids, may be empty), the fidelity of each setting is measured too, along the full
    cache's answer. `along`: measure it along this many tokens that the full cache generates, ignoring stop tokens.
    `prefixes` holds chunks of earlier prompts. It frees memory that the settings need, so it does not change a batch.
    Raises `PromptError` if the model's RoPE would switch within the answer.
    """
    length = ids.numel() if context is None else context
    new = max(stopping.max_new_tokens, len(reference or ()), along or 0)
    refuse_crossing(model, length, ids.numel() - length + new)
    window = max((setting.window for setting in settings), default=1)
    scorers = frozenset(chain.from_iterable(setting.scorers(length, schedule.decodes) for setting in settings))
    prefilled = contexts.prefill if contexts else prefill
    prompt = replace(prefilled(model, ids[:length], window, chunk, scorers, prefixes), question=ids[length:])
    scoring = PrefillError(
        "prompt", "use shorter prompts or model.device=map", why=f"out of memory while scoring {length} tokens"
    )
    full = None
    if any(map(needs_answer, scorers)):
        with memory_as(scoring):
            prompt.score([setting for setting in settings if not setting.needs_answer])
        full, prompt = _answered(model, prompt, stopping)
    with memory_as(scoring):
        prompt.score(settings)
        kept = {place: prompt.kept(setting) for place, setting in enumerate(settings)}
        if schedule.decodes:
            for place, setting in enumerate(settings):
                refuse_scores(setting, schedule, prompt.scores(setting), kept[place])
    decoding = Decoding(prompt, settings, schedule)
    stored = prefixes.nbytes if prefixes else 0
    limit = int(SHARE * (free_bytes(model) + stored)) if memory is None else memory - prompt.nbytes
    sizes = [prompt.row_bytes(kept[place], stopping.max_new_tokens) for place in range(len(settings))]
    generations: dict[int, Generation] = {}
    pending = decode_batches(settings, sizes, limit)
    if full:
        alone = [place for place, setting in enumerate(settings) if setting.budget is None]
        generations = {place: replace(full, together=(place,)) for place in alone}
        pending = [batch for batch in pending if batch[0] not in generations]
    if prefixes:
        beside = 0 if reference is None else prompt.row_bytes(prompt.kept(FULL), new)
        prefixes.trim(limit - beside - max((sum(sizes[place] for place in batch) for batch in pending), default=0))
    while pending:
        batch = pending.pop(0)
        last = not pending and len(batch) == 1 and reference is None and contexts is None
        generations |= _decode_together(model, decoding, {place: kept[place] for place in batch}, stopping, last)
    if reference is not None:
        known = full is not None and len(full.tokens) >= (along or 0)
        answer = full.tokens[:along] if full and known else _full_answer(model, decoding, generations, stopping, along)
        measured = fidelity(model, prompt, kept, answer, reference, limit, settings, schedule)
        generations = {place: replace(each, fidelity=measured[place]) for place, each in generations.items()}
    return [generations[place] for place in range(len(settings))]


@dataclass(frozen=True)
class Decoding:
    """A prompt, and the settings that decode after it."""

    prompt: Prefill
    settings: Sequence[Setting]
    schedule: EvictionSchedule


def _full_answer(
    model: PreTrainedModel,
    decoding: Decoding,
    generations: Mapping[int, Generation],
    stopping: Stopping,
    along: int | None,
) -> list[int]:
    """Return the full cache's answer, or `along` tokens that it generates. The tokens are reused if a setting is the
    full cache and has generated enough tokens.
    """
    for place, setting in enumerate(decoding.settings):
        if setting.budget is None and len(generations[place].tokens) >= (along or 0):
            return generations[place].tokens[:along]
    if along is not None:
        stopping = replace(stopping, max_new_tokens=along, past_ids=True)
    full = Decoding(decoding.prompt, [FULL], decoding.schedule)
    return _decode_together(model, full, {0: decoding.prompt.kept(FULL)}, stopping)[0].tokens


def _answered(model: PreTrainedModel, prompt: Prefill, stopping: Stopping) -> tuple[Generation, Prefill]:
    """Return the full cache's answer, and the prompt; its layers have the queries with which the answer reads it.

    These are the queries of all tokens that are fed after the compressed tokens: the question, and the answer without
    its last token. If no token is fed, it is the query of the last prompt token, and the answer has one token.
    """
    queries: list[list[Tensor]] = [[] for _ in prompt.layers]
    full, kept = Decoding(prompt, [FULL], AFTER_PROMPT), {0: prompt.kept(FULL)}
    answer = _decode_together(model, full, kept, stopping, watch=lambda layer, new: queries[layer].append(new[0]))[0]
    whole = [
        torch.cat(parts, 1) if parts else layer.queries[:, -1:]
        for layer, parts in zip(prompt.layers, queries, strict=True)
    ]
    return answer, prompt.with_answer(whole)


def decode_batches(settings: Sequence[Setting], sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Group the indices of `settings` into batches, given the bytes that each setting takes and their `limit`.

    Each full cache decodes alone, so that its tokens equal the tokens of a separate run in any dtype.
    """
    full = [place for place, setting in enumerate(settings) if setting.budget is None]
    others = [place for place, setting in enumerate(settings) if setting.budget is not None]
    split = batches([sizes[place] for place in others], limit)
    return [[others[i] for i in batch] for batch in split] + [[place] for place in full]


def _decode_together(
    model: PreTrainedModel,
    decoding: Decoding,
    kept: Mapping[int, Kept],
    stopping: Stopping,
    last: bool = False,
    watch: Callable[[int, Tensor], None] | None = None,
) -> dict[int, Generation]:
    """Decode the settings at these indices as one batch, or in halves if it does not fit into the device's memory.

    The `last` setting, which decodes alone, may free the prompt. `watch` as in `answering`, for a setting alone.
    """
    places, prompt = tuple(kept), decoding.prompt
    chosen = [decoding.settings[place] for place in places]
    # The full cache, which decodes alone, never evicts.
    schedule = AFTER_PROMPT if chosen[0].budget is None else decoding.schedule
    cache: EvictedCache | None
    try:
        cache, logits = answering(
            model, prompt, list(kept.values()), chosen, stopping.max_new_tokens, schedule, last, watch
        )
        ids = torch.cat([prompt.ids, prompt.question])
        tokens = decode(model, cache, logits, prompt.end, len(places), stopping, ids)
    except (RuntimeError, MemoryError) as error:
        cache = None
        if not ran_out(error):
            raise
        if len(places) == 1:
            raise PromptError(
                "prompt",
                "use shorter prompts, a smaller model.dtype or model.device=map",
                why=f"out of memory while decoding one setting after {prompt.end} tokens",
            ) from error
    else:
        tallies = [counts(setting) for setting in kept.values()]
        eviction = cache.eviction
        generations = {}
        for slot, (place, row, tally) in enumerate(zip(places, tokens, tallies, strict=True)):
            sizes = prompt.cache.kept_bytes(tally), prompt.cache.sliding_bytes
            peak, later = (eviction.peak(slot), slot in eviction.evicted) if eviction else (None, False)
            generations[place] = Generation(
                row, tally, *sizes, places, peak_kept=peak, evicted_later=later, positions=kept[place]
            )
        return generations
    # Outside the handler, because the handler's traceback would keep the failed batch alive.
    halves = places[: len(places) // 2], places[len(places) // 2 :]
    first, second = (_decode_together(model, decoding, {p: kept[p] for p in half}, stopping) for half in halves)
    return first | second
