"""How much memory a run will take at its peak, said before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from transformers import PreTrainedModel

from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import decode_batches
from compresskv.engine.memory import SHARE, batches, free_by_device, free_bytes, layer_shares, used_bytes
from compresskv.engine.setting import Setting
from compresskv.eviction import needs_answer, observers


@dataclass(frozen=True)
class Forecast:
    """What `generate` takes for a prompt and its settings, in bytes, computed from the model's shape.

    `allowed` beside what is in `used` now; `scores` of all layers, `passing` what a layer takes while it is scored;
    `caches` of the largest batch; `batches` of those settings that evict; `prefixes`: chunks of earlier prompts, as
    many as all else leaves room for. `devices`: the free bytes of each, and the share of the layers that is on it.
    """

    length: int
    used: int
    allowed: int
    prompt: int
    activations: int
    scores: int
    passing: int
    caches: int
    batches: int
    devices: tuple[tuple[int, float], ...]
    prefixes: int = 0

    @property
    def peak(self) -> int:
        """All devices together."""
        return self.used + self.prefixes + max(spread + alone for spread, alone in self._moments)

    @property
    def _moments(self) -> list[tuple[int, int]]:
        """In the prefill, while scoring, while decoding: what is spread over devices as layers are, and what is not."""
        return [
            (self.prompt, self.activations),
            (self.prompt + self.scores, self.passing),
            (self.prompt + self.scores + self.caches, 0),
        ]

    @property
    def fits(self) -> bool:
        """Whether each device has room for its layers' share, and for what is in one layer at a time."""
        for free, share in self.devices:
            if any(share * (spread + self.prefixes) + alone > free for spread, alone in self._moments):
                return False
        return self.peak - self.used <= self.allowed

    def __str__(self) -> str:
        text = (
            f"prompts of up to {self.length} tokens, expected peak {_gb(self.peak)} GB: {_gb(self.used)} now, prompt "
            f"{_gb(self.prompt)}, scores {_gb(self.scores)}, caches {_gb(self.caches)}"
            + (f", prefixes of earlier prompts {_gb(self.prefixes)}" if self.prefixes else "")
            + f"; {_gb(self.allowed)} GB are free"
        )
        if len(self.devices) > 1:
            text += f" on {len(self.devices)} GPUs"
        if not self.fits:
            text += (
                "; it may not fit: raise memory if it is set, or use prefill_chunk, shorter prompts or smaller budgets"
            )
        elif self.batches > 1:
            text += f"; the settings that evict decode in {self.batches} batches"
        return text


def forecast(
    model: PreTrainedModel,
    settings: Sequence[Setting],
    length: int,
    room: int,
    chunk: int | None = None,
    memory: int | None = None,
    backend: str = "sdpa",
    fidelity: bool = False,
    sequences: int = 0,
    contexts: bool = False,
) -> Forecast:
    """For all `settings` of a prompt of `length` tokens and `room` new ones; `chunk` and `memory` as `generate` has.

    With `fidelity`, the prompt stays, and the full cache is beside each batch. With `contexts`, whose prefill is kept
    for the next question, it stays too. With a `chunk`, the chunks of the last prompt of so many token `sequences` are
    kept for the next one, as far as memory goes.
    """
    shape = Footprint(model, length, backend)
    scorers = set(chain.from_iterable(setting.scorers(length) for setting in settings))
    scoring = shape.scoring(scorers, max(setting.window for setting in settings))
    # Observers work while the prompt is processed.
    observing = scoring.passing if observers(scorers) else 0
    scores = scoring.scores + scoring.rankings
    free, shares = free_by_device(model), layer_shares(model)
    limit = (int(SHARE * free_bytes(model)) if memory is None else memory) - shape.prompt - scores
    sizes = [shape.row(setting.tokens(length), room) for setting in settings]
    evicting = [
        sum(sizes[place] for place in batch)
        for batch in decode_batches(settings, sizes, limit)
        if settings[batch[0]].budget is not None
    ]
    caches = max(evicting, default=0)
    if fidelity:
        caches = max(sum(sizes[place] for place in batch) for batch in batches(sizes, limit)) + shape.row(None, room)
    elif any(map(needs_answer, scorers)):
        caches = max(caches, shape.row(None, room))  # the full cache answers first
    elif any(setting.budget is None for setting in settings):
        # The full cache, which decodes last, takes the prompt's place.
        caches = max(caches, shape.row(None, room) if contexts else shape.full_row(room))
    total = sum(free.values())
    expected = Forecast(
        length=length,
        used=used_bytes(model),
        allowed=total if memory is None else min(memory, total),
        prompt=shape.prompt,
        activations=shape.activations(min(length, chunk or length)) + observing,
        scores=scores,
        passing=scoring.passing,
        caches=caches,
        batches=len(evicting),
        devices=tuple((free[device], shares.get(device, 0.0)) for device in free),
    )
    budget = int(SHARE * free_bytes(model)) if memory is None else min(memory, free_bytes(model))
    left = max(budget - (expected.peak - expected.used), 0)
    return replace(expected, prefixes=min(sequences * shape.prompt, left) if chunk else 0)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
