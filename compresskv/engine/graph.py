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
from compresskv.engine.memory import gpus, ran_out
from compresskv.engine.ragged import RaggedTable
from compresskv.engine.rotary import depends_on_length
from compresskv.errors import UserError

EAGER = 2
"""Number of steps before the first capture."""

LEFT = 4
"""Stopped rows leave the batch when they are 1 / `LEFT` of its rows, because each time the step is captured again."""

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


def captured(step: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Capture `step`, all on `device`, as a CUDA graph. Return its output buffer, and a function that runs it.

    While it is captured, `step` only runs on the host.
    """
    graph = torch.cuda.CUDAGraph()
    # Without these, torch would capture a stream of the current device, which may be another device.
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        out = step()
    return out, graph.replay


class Steps:
    """Decode steps of one batch of rows: eager steps, or replayed graphs if `graphs` is on and the cache allows
    them."""

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
            self._place(position)
            self.cache.replayed()
        assert self.recorded is not None
        self.recorded()
        return self.logits

    def _place(self, position: int | Tensor) -> None:
        if isinstance(position, Tensor):
            self.positions.copy_(position)
        else:
            self.positions.fill_(position)

    def _record(self, tokens: Tensor, position: int | Tensor) -> None:
        """Record the step of these `tokens`. Python runs once while it is recorded, so it advances the counters.

        Raises `UserError` if the step cannot be recorded, for example because it waits for the GPU.
        """
        self.ids, self.positions = tokens.clone(), torch.empty_like(tokens)
        self._place(position)
        try:
            self.logits, self.recorded = captured(
                lambda: forward_tokens(self.model, self.ids, self.cache, self.positions), tokens.device
            )
        except RuntimeError as error:
            if ran_out(error):
                raise
            said = str(error).strip().split("\n")[0][:200]
            why = f"a decode step of {type(self.model).__name__} cannot be captured ({said})"
            raise UserError("engine.graph", "set engine.graph=off", value="auto", why=why) from error


def replayable(model: PreTrainedModel, cache: EvictedCache) -> bool:
    """Return whether each step of `cache` asks for the same operations on the same memory.

    Return False on the CPU, on several devices, with sliding-window layers, with layers that report their queries (as
    for eviction while decoding), and with a RoPE that depends on the length.
    """
    return (
        on_gpu(model)
        and len(cache.groups) == 1
        and not cache.sliding
        and all(layer.on_decode is None for layer in cache.evicting)
        and not depends_on_length(model)
    )


def on_gpu(model: PreTrainedModel) -> bool:
    """Return whether all of `model` is on one GPU."""
    return model.device.type == "cuda" and len(gpus(model)) == 1


def _steady(cache: EvictedCache) -> bool:
    """Return whether the next step is like the previous step: one token per row, in storage that has room for it."""
    return all(isinstance(table, RaggedTable) and table.step == 1 and table.new < table.room for table in cache.groups)
