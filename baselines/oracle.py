"""The oracle: keep the tokens that the full cache's own answer attends to.

It needs the answer before it evicts, so it only serves as a reference: it shows what a budget can achieve.
For KV head k, with the query heads kG … kG+G−1, and prompt token j before the window:

    score[k, j] = mean over its G query heads g and the T queries t of softmax_j(q_gt · k_j · scaling)

The queries come from the full cache's greedy answer, without its last token. With eviction before the question, the
queries of the question are included. The softmax runs over the compressed tokens, including the observation window. The
window is always kept, as in the other methods, so that budgets are comparable. Scores are float32 and not pooled.

What is best for attention need not be best for the answer, so another method may score higher on some prompts.
"""

from dataclasses import dataclass

import torch

from compresskv.context import Context
from compresskv.eviction import BLOCK, LayerPrefill, LayerScores
from compresskv.methods import declares


@dataclass(frozen=True)
class OracleScorer:
    """Score tokens by the attention of the full cache's answer, averaged over its queries and the heads of a group."""

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
