"""How much memory a run will take at its peak, said before it starts."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from compresskv.generation import Setting, decode_batches
from compresskv.memory import SHARE, Footprint, free_bytes, used_bytes


def forecast(
    model: PreTrainedModel, settings: Sequence[Setting], length: int, room: int, chunk: int | None, memory: int | None
) -> str:
    """What `generate` will take for all `settings` of a prompt of `length` tokens and `room` new ones, in a sentence.

    It is computed from the model's shape. `chunk` and `memory` (bytes) as `generate` has them.
    """
    shape = Footprint(model, length)
    scorers = {setting.method.scorer for setting in settings if not setting.keeps_all(length)}
    scores = shape.scores(len(scorers), max(setting.method.window for setting in settings)) if scorers else 0
    used, free = used_bytes(model), free_bytes(model)
    sizes = [shape.row(setting.budget, room) for setting in settings]
    limit = (int(SHARE * free) if memory is None else memory) - shape.prompt - scores
    found = decode_batches(settings, sizes, limit)
    caches = max(sum(sizes[place] for place in batch) for batch in found)
    more = shape.prompt + max(shape.activations(min(length, chunk or length)), scores + caches)
    said = (
        f"prompts of up to {length} tokens, expected peak {_gb(used + more)} GB: {_gb(used)} now, "
        f"prompt {_gb(shape.prompt)}, scores {_gb(scores)}, caches {_gb(caches)}; {_gb(free)} GB are free"
    )
    if any(size > limit for size in sizes) or more > free:
        said += "; it may not fit: set prefill_chunk, or use shorter prompts, smaller budgets or model.device=map"
    elif len(found) > len({setting.budget is None for setting in settings}):
        said += f"; the {len(settings)} settings of a prompt decode in {len(found)} batches"
    return said


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
