"""Scorers, observers, scores and allocators that write to the tensors they receive."""

from dataclasses import dataclass, field

import torch

from baselines.h2o import AccumulatedAttention, H2OScorer
from baselines.snapkv import SnapKVScorer
from baselines.uniform import UniformAllocator
from compresskv.eviction import EvictionMethod, LayerScores, Observation

SNAPKV = SnapKVScorer(Observation(window=4))


@dataclass(frozen=True)
class Writes:
    """A scorer that writes to `name` of the layer in the way `how`, then returns SnapKV's scores."""

    name: str = "keys"
    how: str = "itself"
    window: int = 4

    def __call__(self, layer):
        tensor = getattr(layer, self.name)
        if self.how == "view":
            tensor.detach()[0].transpose(0, 1)[1:].mul_(0.5)
        elif self.how == "out":
            torch.mul(tensor, 0.5, out=tensor)
        elif self.how == "data":
            tensor.data.div_(2)
        elif self.how == "numpy":
            tensor.numpy()[:] *= 0.5
        else:
            tensor.div_(2)
        return SNAPKV(layer)


@dataclass(frozen=True)
class WritesAttention:
    """A scorer that sets the attention to the sinks to 0, in the tensor that all scorers share."""

    window: int = 4

    def __call__(self, layer):
        attention = layer.window_attention(self.window)
        attention[..., :4] = 0
        return LayerScores(attention[: layer.kv_heads, :, : -self.window].sum(1))


@dataclass(frozen=True)
class WritesLater:
    """A scorer that writes to the keys it received, or the scores it returned, one layer before."""

    what: str = "keys"
    window: int = 4
    before: list = field(default_factory=list, hash=False, compare=False)

    def __call__(self, layer):
        scores = SNAPKV(layer)
        if layer.index:
            self.before[-1].mul_(0.5)
        self.before.append(layer.keys if self.what == "keys" else scores.scores)
        return scores


class WritingObserver(AccumulatedAttention):
    def __call__(self, queries, keys, scaling):
        keys.div_(2)
        super().__call__(queries, keys, scaling)


@dataclass(frozen=True)
class Observed(H2OScorer):
    window: int = 4

    def observer(self):
        return WritingObserver()


@dataclass(frozen=True, eq=False)
class WritingScores(LayerScores):
    def order(self, capacity):
        self.scores[:, :2] = -1
        return self.scores.sort(descending=True, stable=True).indices


@dataclass(frozen=True)
class Reorders:
    window: int = 4

    def __call__(self, layer):
        return WritingScores(SNAPKV(layer).scores)


@dataclass(frozen=True)
class Sorts:
    """An allocator that sorts the scores, or changes their ranking, in place."""

    what: str = "scores"

    def __call__(self, scores, shape, budget):
        tensor = scores[-1].scores if self.what == "scores" else scores[-1].ranking
        tensor.copy_(tensor.sort(descending=True).values)
        return UniformAllocator()(scores, shape, budget)


def of(scorer=SNAPKV, allocator=None):
    return EvictionMethod(scorer, allocator or UniformAllocator())


COUNTED = {
    "keys": (of(Writes("keys")), "Writes"),
    "values": (of(Writes("values")), "Writes"),
    "queries": (of(Writes("queries")), "Writes"),
    "a view of the keys": (of(Writes("keys", "view")), "Writes"),
    "keys as out": (of(Writes("keys", "out")), "Writes"),
    "attention": (of(WritesAttention()), "WritesAttention"),
    "keys of the layer before": (of(WritesLater()), "WritesLater"),
    "scores of the layer before": (of(WritesLater("scores")), "WritesLater"),
    "an observer": (of(Observed()), "Observed"),
    "an order": (of(Reorders()), "Reorders"),
    "an allocator, scores": (of(allocator=Sorts()), "Sorts"),
    "an allocator, ranking": (of(allocator=Sorts("ranking")), "Sorts"),
}
"""Writes that PyTorch counts: a method, and the name of the part that the message must contain."""

WRITERS = {fault: method for fault, (method, _) in COUNTED.items()} | {
    f"{name} through {how}": of(Writes(name, how)) for how in ("data", "numpy") for name in ("keys", "values")
}
"""All methods of `COUNTED`, and writes that only a comparison with a copy detects."""
