"""Measure how much each layer's output suffers when its cache is cut to a few tokens (CompressKV §3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskv.calibration.probe import full_cache, full_prefill, probed, step
from compresskv.calibration.retrieval_heads import inside, on_one_device
from compresskv.engine.backends import SDPA
from compresskv.engine.decode import Stopping
from compresskv.errors import UserError
from compresskv.eviction import Scorer, score
from compresskv.selection import select

EPSILON = 1e-5
"""Added to the norm of the full output, as in the released code (the paper says 1e-6)."""


def relative_error(full: Tensor, compressed: Tensor) -> Tensor:
    """Return ‖compressed − full‖ / (‖full‖ + ε) over the last axis (CompressKV eq. 6)."""
    return (compressed - full).norm(dim=-1) / (full.norm(dim=-1) + EPSILON)


def observe(
    model: PreTrainedModel,
    ids: Tensor,
    answer: Sequence[int] | Stopping,
    scorers: Sequence[Scorer],
    projections: Sequence[nn.Module],
    capacity: int,
    context: int | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return errors summed over the decoding steps of an answer, [scorers, layers], and kept tokens, [scorer][layer].

    `answer`: known tokens, or the condition up to which they are generated greedily. `context`: how many tokens of the
    prompt are compressed, before the question is seen; None: all.

    The model runs with its full cache throughout, so errors do not add up from layer to layer. Each layer also attends
    to a shadow cache: the `capacity` past tokens that each scorer keeps, the window, and all later tokens. Both outputs
    are compared after the layer's output projection (`projections`). The scorers must keep the same tokens in every KV
    head. The first token comes from the prefill and is not counted.
    """
    window = max(scorer.window for scorer in scorers)
    prompt = full_prefill(model, ids, window)
    compressed = prompt if context is None else full_prefill(model, ids[:context], window, ids.numel())
    length = compressed.length
    kept = [[select(score(scorer, layer), capacity, length)[0] for layer in compressed.layers] for scorer in scorers]
    del compressed
    errors = torch.zeros(len(scorers), len(prompt.layers))
    sdpa = SDPA()

    def watch(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float, out: Tensor) -> None:
        new = torch.arange(length, keys.shape[1], device=keys.device)
        outputs = [out]
        for positions in kept:
            shadow = torch.cat([positions[layer], new])
            outputs.append(sdpa.attend(query[:, :, None], keys[:, shadow], values[:, shadow], None, scaling)[:, :, 0])
        full, *others = projections[layer](torch.stack(outputs).flatten(1)).float()
        errors[:, layer] += relative_error(full, torch.stack(others)).cpu()

    limit = answer.max_new_tokens if isinstance(answer, Stopping) else len(answer)
    logits = prompt.logits
    with probed(model, len(prompt.layers), watch):
        cache = full_cache(prompt, limit)
        for index in range(limit - 1):
            if isinstance(answer, Stopping):
                if index < answer.min_new_tokens:
                    logits[sorted(answer.ids)] = float("-inf")
                token = int(logits.argmax())
                if token in answer.ids:
                    break
            else:
                token = answer[index]
            logits = step(model, cache, token, prompt.length + index)
    return errors, kept


def coverage(kept: Sequence[Tensor], span: range) -> float:
    """Return the share of the `span` (prompt positions) that the layers kept, averaged over layers."""
    return float(on_one_device([inside(positions, span).sum() for positions in kept]).float().mean()) / len(span)


def share(errors: Sequence[Tensor]) -> Tensor:
    """Return each layer's share of the error: one [layers] tensor per dataset, normalised, averaged, normalised again.

    Raises `UserError` if the error of a dataset is zero, or is not finite.
    """
    if not all(0 < float(e.sum()) < float("inf") for e in errors):
        raise UserError(
            "eval.lengths",
            "use longer prompts, or model.dtype=float32",
            why="on some prompts, all layer errors are zero, or one is not finite",
        )
    mean = torch.stack([e / e.sum() for e in errors]).mean(0)
    return mean / mean.sum()
