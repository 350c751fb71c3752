"""kvpress's PyramidKV: lower layers keep more tokens than higher layers, in an arithmetic sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

from baselines.kvpress.budgeted import ratio_of
from baselines.kvpress.installed import kvpress, kvpress_version
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.eviction import LayerScores, PromptShape

kvpress_version()  # fail before a model is loaded


@dataclass(frozen=True)
class KVPressPyramidAllocator:
    """The budgets of `PyramidKVPress`, with the scorer's window.

    kvpress rounds each layer's budget. The first layers get one token more or less, so that the mean is the budget.
    """

    beta: int
    version: str

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        press = kvpress().PyramidKVPress(ratio_of(budget, shape.length), window_size=shape.window, beta=self.beta)
        config = SimpleNamespace(num_hidden_layers=shape.layers)
        rounded = [
            min(press.get_layer_budget(SimpleNamespace(config=config, layer_idx=layer), shape.length), shape.length)
            for layer in range(shape.layers)
        ]
        return [number - shape.window for number in exact(rounded, shape.layers * budget, shape.length)[: len(scores)]]


def exact(rounded: list[int], total: int, most: int) -> list[int]:
    """Adjust layer budgets by one token in the first layers until they sum to `total`; no budget exceeds `most`."""
    budgets = list(rounded)
    while (missing := total - sum(budgets)) != 0:
        step = 1 if missing > 0 else -1
        places = [place for place, budget in enumerate(budgets) if 0 <= budget + step <= most][: abs(missing)]
        for place in places:
            budgets[place] += step
    return budgets


def allocator(context: Context, *, beta: Annotated[int, Ge(1), Le(1_000_000)]) -> KVPressPyramidAllocator:
    return KVPressPyramidAllocator(beta, kvpress_version())
