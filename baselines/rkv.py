"""R-KV (Cai et al. 2025, arXiv 2505.24133): keep tokens that receive attention, unless later keys are similar.

As in the authors' code (Zefan-Cai/R-KV, MIT, `rkv/compression/r1_kv.py` and `rkv/utils.py`), for each KV head:

    importance[j]  max pooling over `kernel` tokens of the mean over the window of softmax_j(q · k_j · scaling), where
                   q · k_j is the largest over the KV head's query heads, and j runs over the past only
    redundancy[j]  softmax_j of the mean over all tokens i of cos(k_i, k_j), where cos is 0 for i = j and for the last j
                   that is more similar to i than `threshold` (for the first token, where i has no such j)
    score          mix · importance − (1 − mix) · redundancy

Defaults of the code: window 8, kernel 7, threshold 0.5, mix 0.07 (the paper's λ is 0.1). The softmax of the redundancy
runs over the window too. The window is the window of the run. The code's other choices of similar tokens
(`retain_direction`) are left out. `retain_ratio` is left out too, because only these choices read it. Differences:
scores are float32 instead of the model's dtype, cosines are computed in blocks, and eviction also happens after the
prompt. The code evicts after every 128 generated tokens; here, `eviction.interval` sets this number.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.eviction import BLOCK, LayerPrefill, LayerScores, Observation
from compresskv.observation import Kernel


@dataclass(frozen=True)
class RKVScorer:
    """`mix` times the attention of the window, minus (1 − `mix`) times the redundancy of the keys."""

    window: int = 8
    kernel: int = 7
    threshold: float = 0.5
    mix: float = 0.07

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        pooled = Observation(self.window, self.kernel, "max").pool(self._attention(layer))
        redundancy = redundancies(layer.keys, self.threshold)[:, : layer.length - self.window]
        return LayerScores(self.mix * pooled - (1 - self.mix) * redundancy)

    def _attention(self, layer: LayerPrefill) -> Tensor:
        """Return the window's mean attention over the past, from the largest logit in each group: [kv_heads, past]."""
        past = layer.keys[:, : layer.length - self.window].float()
        queries = layer.queries[:, -self.window :].float().unflatten(0, (layer.kv_heads, -1))
        logits = (queries @ past.unsqueeze(1).transpose(2, 3)).amax(1) * layer.scaling
        return logits.softmax(-1).mean(1)


def redundancies(keys: Tensor, threshold: float) -> Tensor:
    """Return how similar each key [kv_heads, tokens, head_dim] is to the other keys: [kv_heads, tokens], float32, sum
    1."""
    unit = F.normalize(keys.float(), dim=-1, eps=1e-8)
    tokens = unit.shape[1]
    places = torch.arange(tokens, device=keys.device)
    total = unit.new_zeros(unit.shape[:2])
    for of_block in places.split(BLOCK):
        cosines = unit[:, of_block] @ unit.transpose(1, 2)
        cosines.masked_fill_(of_block[:, None] == places, 0)
        last = torch.where(cosines > threshold, places, 0).amax(-1, keepdim=True)
        total += cosines.scatter_(-1, last, 0).sum(1)
    return (total / tokens).softmax(-1)


def scorer(
    context: Context,
    *,
    kernel: Kernel,
    threshold: Annotated[float, Ge(0), Le(1)],
    mix: Annotated[float, Ge(0), Le(1)],
) -> RKVScorer:
    """Build the scorer.

    `kernel`: tokens per pooling window. `threshold`: cosine above which keys count as similar. `mix`: the weight of
    attention.
    """
    return RKVScorer(context.observation.window, kernel, threshold, mix)
