"""Find query heads that locate the answer in the prompt and copy or understand it (CompressKV §3.2; Wu et al. 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.calibration.probe import full_cache, full_prefill, probed, step

Scores = Tensor
"""Score of every query head: [layers, q_heads], float32."""


@dataclass(frozen=True)
class HeadObservation:
    """The result of one prompt: the answer's `tokens`, and each head's score by four definitions.

    `semantic` sums a head's attention to the answer span over the steps whose predicted token occurs in the span
    (CompressKV eq. 5). `semantic_count` counts a token once per occurrence in the span, as the released code does.
    `traditional` counts, per span token, the steps where the token with the head's strongest attention is the predicted
    token (Wu et al. 2024). `retrieval_reasoning` averages the attention over the m strongest positions of a step (m
    span tokens), for any predicted token; positions outside the span count as 0 (HeadKV-R2, Fu et al. 2024).
    """

    tokens: list[int]
    semantic: Scores
    semantic_count: Scores
    traditional: Scores
    retrieval_reasoning: Scores


def observe(
    model: PreTrainedModel,
    ids: Tensor,
    span: range,
    layers: int,
    max_steps: int,
    stop: Callable[[Sequence[int]], bool],
) -> HeadObservation:
    """Decode greedily from the prompt `ids` and score all heads on the answer `span` (prompt positions).

    The last prompt token is decoded too, so the step that predicts the first answer token counts. `stop` is called
    after each token.
    """
    glances: list[Glance] = []

    def watch(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float, out: Tensor) -> None:
        glances.append(glance(step_attention(query, keys, scaling), span))

    prompt = full_prefill(model, ids[:-1], 1, ids.numel())
    totals: dict[str, Scores] = {}
    tokens: list[int] = []
    token, ids = int(ids[-1]), ids.cpu()
    with probed(model, layers, watch):
        cache = full_cache(prompt, max_steps)
        for index in range(max_steps):
            glances.clear()
            token = int(step(model, cache, token, prompt.length + index).argmax())
            tokens.append(token)
            for kind, scores in step_scores(stacked(glances), ids, span, token).items():
                totals[kind] = totals.get(kind, 0) + scores
            if stop(tokens):
                break
    return HeadObservation(tokens, **totals)


@dataclass(frozen=True, eq=False)
class Glance:
    """The attention statistics of one step that the scores need; tensors [..., q_heads].

    `mass`: attention on the answer span. `strongest`: position of the largest weight. `top_mass`: mean over the m
    largest weights (m span tokens), where weights outside the span count as zero.
    """

    mass: Tensor
    strongest: Tensor
    top_mass: Tensor


def glance(attention: Tensor, span: range) -> Glance:
    """Compute a `Glance` from one new token's `attention` [q_heads, seen]."""
    top = attention.topk(len(span), dim=-1)
    top_mass = (top.values * inside(top.indices, span)).sum(-1) / len(span)
    return Glance(attention[:, span.start : span.stop].sum(-1), top.indices[:, 0], top_mass)


def stacked(layers: Sequence[Glance]) -> Glance:
    """Stack the glances of all layers into one on the CPU. The layers may be on different devices."""
    return Glance(*(on_one_device([getattr(g, f.name) for g in layers]).cpu() for f in fields(Glance)))


def on_one_device(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape on the device of the first."""
    return torch.stack([tensor.to(tensors[0].device) for tensor in tensors])


def step_scores(seen: Glance, ids: Tensor, span: range, token: int) -> dict[str, Scores]:
    """Return each head's scores at one step, which predicted `token`, by the four definitions of `HeadObservation`.

    `ids` [prompt] are the prompt's ids, on the CPU.
    """
    count = ids[span.start : span.stop].tolist().count(token)
    return {
        "semantic": seen.mass * (count > 0),
        "semantic_count": seen.mass * count,
        "traditional": hits(seen.strongest, ids, span, token) / len(span),
        "retrieval_reasoning": seen.top_mass,
    }


def step_attention(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Return the attention of one new token: query [kv_heads, G, d], keys [kv_heads, seen, d] -> [q_heads, seen]."""
    logits = query.float() @ keys.float().transpose(1, 2) * scaling
    return logits.softmax(-1).flatten(0, 1)


def hits(strongest: Tensor, ids: Tensor, span: range, token: int) -> Tensor:
    """Return 1 for each head whose strongest attention is on a span position with `token`, else 0, float32."""
    position = strongest.clamp(span.start, span.stop - 1)
    return (inside(strongest, span) & (ids[position] == token)).float()


def inside(positions: Tensor, span: range) -> Tensor:
    """Return whether each of `positions` lies in `span`."""
    return (positions >= span.start) & (positions < span.stop)
