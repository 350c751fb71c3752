"""Forecast the peak memory of a run before it starts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from transformers import PreTrainedModel

from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import decode_batches
from compresskv.engine.memory import SHARE, batches, free_by_device, free_bytes, layer_shares, used_bytes
from compresskv.engine.setting import Setting
from compresskv.eviction import needs_answer, observers
from compresskv.models import LoadedModel
from evals.job import Job, Task


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes that `generate` needs for a prompt and its settings, computed from the model's shape.

    - `used`: memory in use now; `allowed`: memory that may be used in addition.
    - `scores`: scores of all layers; `passing`: temporary memory of one layer while it is scored.
    - `caches`: caches of the largest decode batch; `batches`: number of batches of the settings that evict.
    - `prefixes`: stored chunks of earlier prompts, limited to the memory that is left.
    - `devices`: free bytes of each device, and the share of the layers on it.
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
        """Peak memory of all devices together."""
        return self.used + self.prefixes + max(spread + alone for spread, alone in self._moments)

    @property
    def _moments(self) -> list[tuple[int, int]]:
        """Memory during prefill, scoring and decoding: the part that is spread over devices with the layers, and the
        part that is on one device."""
        return [
            (self.prompt, self.activations),
            (self.prompt + self.scores, self.passing),
            (self.prompt + self.scores + self.caches, 0),
        ]

    @property
    def fits(self) -> bool:
        """Whether each device has room for its share of the layers and for the memory of one layer at a time."""
        for free, share in self.devices:
            if any(share * (spread + self.prefixes) + alone > free for spread, alone in self._moments):
                return False
        return self.peak - self.used <= self.allowed

    def __str__(self) -> str:
        text = (
            f"prompts of up to {self.length} tokens, expected peak {_gb(self.peak)} GB: {_gb(self.used)} now, prompt "
            f"{_gb(self.prompt)}, scores {_gb(self.scores)}, caches {_gb(self.caches)}"
        )
        if self.prefixes:
            text += f", prefixes of earlier prompts {_gb(self.prefixes)}"
        text += f"; {_gb(self.allowed)} GB are free"
        if len(self.devices) > 1:
            text += f" on {len(self.devices)} GPUs"
        if not self.fits:
            fix = "raise memory if it is set, or use prefill_chunk, shorter prompts or smaller budgets"
            text += f"; it may not fit: {fix}"
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
    """Forecast the memory of all `settings` for a prompt of `length` tokens and `room` new tokens.

    `chunk` and `memory` are as in `generate`. With `fidelity`, the prompt stays in memory and the full cache decodes
    with each batch. With `contexts`, the prompt also stays, because its prefill is kept for the next question. With a
    `chunk`, the chunks of the last prompt of each of `sequences` token sequences are kept for the next prompt, as far
    as memory allows.
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
        # The full cache decodes last and reuses the memory of the prompt.
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


def forecast_of(
    model: LoadedModel,
    job: Job,
    settings: Sequence[Setting],
    tasks: Collection[Task],
    contexts: bool,
    sequences: int = 0,
) -> Forecast:
    """Forecast the memory of a job's prompts on these tasks, with these settings; `forecast` explains the last two."""
    return forecast(
        model.model,
        settings,
        max(task.longest_prompt for task in tasks),
        max(job.new_tokens(task) for task in tasks),
        job.prefill_chunk,
        job.memory_bytes,
        model.backend,
        job.fidelity is not None,
        sequences,
        contexts,
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
