"""Random eviction: every past token is kept with the same probability. Other methods should beat it."""

from dataclasses import dataclass
from typing import Annotated

import torch

from compresskv.checking import Ge, Lt
from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores


@dataclass(frozen=True)
class RandomScorer:
    """Uniform random scores, determined by `seed` and the layer, independent of the order of prompts and calls."""

    window: int = 8
    seed: int = 0

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        # Drawn on the CPU, so that every device keeps the same tokens.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + layer.index)
        scores = torch.rand(layer.kv_heads, layer.length - self.window, generator=generator)
        return LayerScores(scores.to(layer.keys.device))


def scorer(context: Context, *, seed: Annotated[int, Ge(0), Lt(2**31)]) -> RandomScorer:
    """Build the scorer. A different `seed` keeps different tokens."""
    return RandomScorer(context.observation.window, seed)
