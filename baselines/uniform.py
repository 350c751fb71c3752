"""The uniform allocator: every layer and head keeps the same number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape


@dataclass(frozen=True)
class UniformAllocator:
    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        return [budget - shape.window] * len(scores)


def allocator(context: Context) -> UniformAllocator:
    return UniformAllocator()
