"""Knorm (Devoto et al. 2024, arXiv 2406.11430): keep keys of small L2 norm, because they receive much attention."""

from dataclasses import dataclass

import torch

from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores


@dataclass(frozen=True)
class KeyNormScorer:
    """The negative norm of each past key, in `dtype` (None: the model's dtype). Needs no attention."""

    window: int = 8
    dtype: torch.dtype | None = torch.float32

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        past = layer.keys[:, : layer.length - self.window]
        return LayerScores(-past.to(self.dtype or past.dtype).norm(dim=-1))


def scorer(context: Context) -> KeyNormScorer:
    return KeyNormScorer(context.observation.window, context.score_dtype)
