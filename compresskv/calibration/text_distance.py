"""How far a model departs from its full cache on ordinary text, of which scorers choose what it keeps."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from compresskv.calibration.probe import full_prefill
from compresskv.engine.attention import attached
from compresskv.engine.fidelity import fidelity
from compresskv.engine.memory import SHARE, free_bytes
from compresskv.eviction import Scorer
from compresskv.selection import select


def observe(
    model: PreTrainedModel,
    ids: Tensor,
    continuation: Sequence[int],
    scorers: Sequence[Scorer],
    capacities: Sequence[int],
) -> list[float]:
    """KL(full ‖ compressed) of the next-token distributions in nats per token of `continuation`, by scorer.

    The model has read the text `ids` [tokens], int64, and is given what follows it, two tokens at least; the first
    counts nothing, since no eviction has touched its distribution. Every layer keeps the window and as many past tokens
    as each of `capacities` says; the mean over these is returned.
    """
    prompt = full_prefill(model, ids, max(scorer.window for scorer in scorers))
    kept = {}
    for number, scorer in enumerate(scorers):
        scores = [scorer(layer) for layer in prompt.layers]
        for capacity in capacities:
            kept[number, capacity] = [select(layer, capacity, prompt.length) for layer in scores]
    places = dict(enumerate(kept))
    with attached(model):
        limit = int(SHARE * free_bytes(model))
        measured = fidelity(model, prompt, {place: kept[key] for place, key in places.items()}, continuation, (), limit)
    sums = [0.0] * len(scorers)
    for place, (number, _) in places.items():
        kl = measured[place].kl
        assert kl is not None, "a continuation of two tokens has a distance"
        sums[number] += kl
    return [total / len(capacities) for total in sums]
