"""How much memory a run will take at its peak, said before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from compresskv.engine.generation import decode_batches
from compresskv.engine.memory import SHARE, Footprint, free_bytes, used_bytes
from compresskv.engine.prefill import Setting


@dataclass(frozen=True)
class Forecast:
    """What `generate` takes for a prompt and its settings, in bytes, computed from the model's shape.

    `allowed` beside what is in `used` now; `caches` of the largest batch; `batches` of those settings that evict.
    """

    length: int
    used: int
    allowed: int
    prompt: int
    activations: int
    scores: int
    caches: int
    batches: int

    @property
    def peak(self) -> int:
        return self.used + self.prompt + max(self.activations, self.scores + self.caches)

    def __str__(self) -> str:
        said = (
            f"prompts of up to {self.length} tokens, expected peak {_gb(self.peak)} GB: {_gb(self.used)} now, prompt "
            f"{_gb(self.prompt)}, scores {_gb(self.scores)}, caches {_gb(self.caches)}; {_gb(self.allowed)} GB are free"
        )
        if self.peak - self.used > self.allowed:
            said += (
                "; it may not fit: raise memory if it is set, or use prefill_chunk, shorter prompts or smaller budgets"
            )
        elif self.batches > 1:
            said += f"; the settings that evict decode in {self.batches} batches"
        return said


def forecast(
    model: PreTrainedModel,
    settings: Sequence[Setting],
    length: int,
    room: int,
    chunk: int | None = None,
    memory: int | None = None,
) -> Forecast:
    """For all `settings` of a prompt of `length` tokens and `room` new ones; `chunk` and `memory` as `generate` has."""
    shape = Footprint(model, length)
    scorers = {s.method.scorer for s in settings if s.method and not s.keeps_all(length)}
    scores = shape.scores(len(scorers), max(setting.window for setting in settings)) if scorers else 0
    free = free_bytes(model)
    limit = (int(SHARE * free) if memory is None else memory) - shape.prompt - scores
    sizes = [shape.row(setting.budget, room) for setting in settings]
    batches = decode_batches(settings, sizes, limit)
    return Forecast(
        length=length,
        used=used_bytes(model),
        allowed=free if memory is None else min(memory, free),
        prompt=shape.prompt,
        activations=shape.activations(min(length, chunk or length)),
        scores=scores,
        caches=max(sum(sizes[place] for place in batch) for batch in batches),
        batches=sum(settings[batch[0]].budget is not None for batch in batches),
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
