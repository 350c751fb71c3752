"""The oracle: keep the tokens that the full cache's own answer attends to.

It is a yardstick, since it needs the answer before it evicts: how much of what a budget can hold does a method get?
For KV head k, with the query heads kG … kG+G−1, and prompt token j before the window:

    score[k, j] = mean over its G query heads g and the T queries t of softmax_j(q_gt · k_j · scaling)

The queries are those of the tokens that the model reads after the compressed ones: the full cache's greedy answer, but
for its last token; before them those of the question, with eviction before the question. The softmax runs over all
compressed tokens, the observation window included, and over none of the later ones. The window is kept, as by the other
methods, so that budgets are comparable. Scores are float32 and not pooled.

What is best for attention need not be best for the answer, so another method may score higher on some prompts.
"""

from dataclasses import dataclass

import torch

from compresskv.context import Context
from compresskv.eviction import BLOCK, LayerPrefill, LayerScores
from compresskv.methods import declares


@dataclass(frozen=True)
class OracleScorer:
    """Attention of the full cache's answer, mean over its queries and over the query heads of a KV head."""

    window: int = 8

    @property
    def needs_answer(self) -> bool:
        return True

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        assert layer.answer is not None
        keys, tokens = layer.keys.float().transpose(1, 2), layer.answer.shape[1]
        total = torch.zeros(layer.kv_heads, layer.length, device=layer.keys.device)
        for block in layer.answer.split(BLOCK, 1):
            queries = block.float().reshape(layer.kv_heads, -1, block.shape[-1])  # [kv_heads, G · block, head_dim]
            attention = (queries @ keys).mul_(layer.scaling).softmax(-1)
            total += attention.sum(1)
        group = layer.answer.shape[0] // layer.kv_heads
        return LayerScores(total[:, : layer.length - self.window] / (group * tokens))


@declares(path="shared")
def scorer(context: Context) -> OracleScorer:
    return OracleScorer(context.observation.window)
