"""Which query heads find the answer in the prompt, and copy or understand it (CompressKV §3.2; Wu et al. 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.calibration.probe import full_cache, full_prefill, probed, step

Scores = Tensor
"""Score of every query head: [layers, q_heads], float32."""


@dataclass(frozen=True)
class HeadObservation:
    """What one prompt showed: the answer's `tokens`, and each head's score by four definitions.

    `semantic` sums the attention a head gives the answer span at the steps whose predicted token occurs in it
    (CompressKV eq. 5); `semantic_count` counts a token as often as it occurs there, as the released code does;
    `traditional` counts, per span token, the steps at which the head's strongest attention falls on the very token
    that is predicted (Wu et al. 2024); `retrieval_reasoning` averages, over the m strongest positions of a step (m span
    tokens), the attention of those inside the span, whatever is predicted (HeadKV-R2, Fu et al. 2024).
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

    The last prompt token is decoded too, so the step that predicts the first answer token counts. `stop` is asked
    after each token.
    """
    in_span = slice(span.start, span.stop)
    span_ids = ids[in_span].tolist()
    masses: list[Tensor] = []
    strongest: list[Tensor] = []
    reasoning: list[Tensor] = []

    def watch(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float, out: Tensor) -> None:
        attention = step_attention(query, keys, scaling)
        masses.append(attention[:, in_span].sum(-1))
        top = attention.topk(len(span), dim=-1)
        strongest.append(top.indices[:, 0])
        reasoning.append((top.values * inside(top.indices, span)).sum(-1) / len(span))

    prompt = full_prefill(model, ids[:-1], 1)
    cache = full_cache(prompt, max_steps)
    semantic, semantic_count, traditional, retrieval_reasoning = (torch.zeros(()) for _ in range(4))
    tokens: list[int] = []
    token = int(ids[-1])
    with probed(model, layers, watch):
        for index in range(max_steps):
            for seen in (masses, strongest, reasoning):
                seen.clear()
            token = int(step(model, cache, token, prompt.length + index).argmax())
            tokens.append(token)
            mass, top = torch.stack(masses).cpu(), torch.stack(strongest).cpu()
            semantic = semantic + mass * (token in span_ids)
            semantic_count = semantic_count + mass * span_ids.count(token)
            traditional = traditional + hits(top, ids.cpu(), span, token) / len(span_ids)
            retrieval_reasoning = retrieval_reasoning + torch.stack(reasoning).cpu()
            if stop(tokens):
                break
    return HeadObservation(tokens, semantic, semantic_count, traditional, retrieval_reasoning)


def step_attention(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Attention of one new token, all heads: query [kv_heads, G, d], keys [kv_heads, seen, d] -> [q_heads, seen]."""
    logits = query.float() @ keys.float().transpose(1, 2) * scaling
    return logits.softmax(-1).flatten(0, 1)


def hits(strongest: Tensor, ids: Tensor, span: range, token: int) -> Tensor:
    """1 for each head whose strongest attention is on a span position that holds `token`, else 0, float32."""
    position = strongest.clamp(span.start, span.stop - 1)
    return (inside(strongest, span) & (ids[position] == token)).float()


def inside(positions: Tensor, span: range) -> Tensor:
    """Which `positions` lie in `span`."""
    return (positions >= span.start) & (positions < span.stop)
