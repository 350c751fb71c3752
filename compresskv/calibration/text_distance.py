"""Measure the distance of a model with evicted tokens from its full cache, on ordinary text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.calibration.probe import full_prefill
from compresskv.engine.attention import attached
from compresskv.engine.fidelity import fidelity
from compresskv.engine.memory import SHARE, free_bytes
from compresskv.eviction import Scorer, score
from compresskv.selection import select


def observe(
    model: PreTrainedModel,
    ids: Tensor,
    continuation: Sequence[int],
    scorers: Sequence[Scorer],
    capacities: Sequence[int],
) -> list[float]:
    """Return KL(full ‖ compressed) of the next-token distributions in nats per token of `continuation`, by scorer.

    The model reads the text `ids` [tokens], int64, and then `continuation`, at least two tokens. The first token of
    `continuation` is not counted, because eviction cannot affect its distribution. Every layer keeps the window and, in
    turn, each number of past tokens in `capacities`; the mean over `capacities` is returned.
    """
    prompt = full_prefill(model, ids, max(scorer.window for scorer in scorers))
    kept = []
    for scorer in scorers:
        scores = [score(scorer, layer) for layer in prompt.layers]
        for capacity in capacities:
            kept.append([select(layer, capacity, prompt.length) for layer in scores])
    with attached(model):
        measured = fidelity(model, prompt, dict(enumerate(kept)), continuation, (), int(SHARE * free_bytes(model)))
    distances = torch.tensor([measured[place].kl for place in range(len(kept))], dtype=torch.float64)
    return distances.view(len(scorers), len(capacities)).mean(1).tolist()
