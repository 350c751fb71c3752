"""A decode step as a CUDA graph: the host asks for one launch instead of about 35 per layer.

Token ids and positions are in buffers on the GPU. The first steps run eagerly, so that kernels and libraries are warm;
then a step is captured and replayed. Tables of rows change in place, so a replay writes the next token of each row. A
replay runs no Python, so the host's counters are advanced here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.cache import EvictedCache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.memory import gpus
from compresskv.engine.ragged import RaggedTable
from compresskv.engine.rotary import depends_on_length

EAGER = 2
"""Number of steps before the first capture."""

LEFT = 4
"""Rows that stopped leave the batch once they are one of this many: each time, the step is captured again."""

_replaying: "WeakSet[PreTrainedModel]" = WeakSet()


@contextmanager
def graphs(model: PreTrainedModel, replay: bool) -> Iterator[None]:
    """Decode `model` with graphs inside the block, if `replay` and if its device and cache allow it."""
    if not replay or model in _replaying:
        yield
        return
    _replaying.add(model)
    try:
        yield
    finally:
        _replaying.discard(model)


def captured(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Capture `step` as a CUDA graph. Return its output buffer, and a function that runs its operations.

    While it is captured, `step` only runs on the host.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return out, graph.replay


class Steps:
    """Decode steps of one batch of rows: eager ones, or replays if `graphs` is on and the cache allows them."""

    def __init__(self, model: PreTrainedModel, cache: EvictedCache):
        self.model, self.cache = model, cache
        self.replays = model in _replaying and replayable(model, cache)
        self.eager = EAGER
        self.recorded: Callable[[], None] | None = None

    def leave_at(self, rows: int) -> int:
        """Return how many of `rows` must have stopped before they are removed."""
        return max(1, rows // LEFT) if self.replays else 1

    def keep(self, settings: Tensor) -> None:
        """Keep only these settings (sorted, on the CPU) in the cache. The step must be captured again."""
        self.cache.batch_select_indices(settings)
        self.recorded, self.eager = None, max(self.eager, 1)

    def __call__(self, tokens: Tensor, position: int | Tensor) -> Tensor:
        """Feed one new token per row, as `forward_tokens` does. Return the next logits [rows, vocabulary], float32.

        With a graph, the logits are in a buffer that the next call overwrites.
        """
        if not self.replays or self.eager or not _steady(self.cache):
            self.recorded, self.eager = None, max(self.eager - 1, 0)
            return forward_tokens(self.model, tokens, self.cache, position)
        if self.recorded is None:
            self._record(tokens, position)
        else:
            self.ids.copy_(tokens)
            self.positions.copy_(torch.as_tensor(position))
            self.cache.replayed()
        assert self.recorded is not None
        self.recorded()
        return self.logits

    def _record(self, tokens: Tensor, position: int | Tensor) -> None:
        """Record the step of these `tokens`. Python runs once while it is recorded, so it advances the counters."""
        self.ids, self.positions = tokens.clone(), torch.empty_like(tokens).copy_(torch.as_tensor(position))
        self.logits, self.recorded = captured(lambda: forward_tokens(self.model, self.ids, self.cache, self.positions))


def replayable(model: PreTrainedModel, cache: EvictedCache) -> bool:
    """Return whether each step of `cache` asks for the same operations on the same memory.

    Not so on the CPU, on several devices, with sliding-window layers, with eviction while decoding, or with a RoPE that
    depends on the length.
    """
    return (
        on_gpu(model)
        and len(cache.groups) == 1
        and not cache.sliding
        and cache.eviction is None
        and not depends_on_length(model)
    )


def on_gpu(model: PreTrainedModel) -> bool:
    """Return whether all of `model` is on one GPU."""
    return model.device.type == "cuda" and len(gpus(model)) == 1


def _steady(cache: EvictedCache) -> bool:
    """Return whether the next step is like the one before: one token per row, in storage that has room for it."""
    return all(isinstance(table, RaggedTable) and table.step == 1 and table.new < table.room for table in cache.groups)
