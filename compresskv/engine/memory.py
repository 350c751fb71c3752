"""What a prompt and its settings take of a device's memory: how much is free, and which settings fit in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv.engine.rows import ROUNDING

SHARE = 0.8
"""Of the free memory, what may be planned with; the rest is for fragmentation and others."""


def used_bytes(model: PreTrainedModel) -> int:
    """Bytes in use now: tensors on the GPUs of `model`, or all of this process."""
    if gpus := _gpus(model):
        return sum(map(torch.cuda.memory_allocated, gpus))
    return psutil.Process().memory_info().rss


def free_bytes(model: PreTrainedModel) -> int:
    """Bytes that this process can still get on the devices of `model`; the scarcest counts where there are several."""
    if gpus := _gpus(model):
        return min(map(_cuda_free, gpus)) * len(gpus)
    return min(psutil.virtual_memory().available, *_cgroup_free())


def _gpus(model: PreTrainedModel) -> list[torch.device]:
    return [device for device in {p.device for p in model.parameters()} if device.type == "cuda"]


def _cuda_free(device: torch.device) -> int:
    # What torch holds in reserve is free for the next tensor.
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _cgroup_free(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each limit on this process leaves, as a cluster or a container sets them (cgroup version 2)."""
    if not process.exists():
        return [1 << 62]
    group = next((line[3:] for line in process.read_text().splitlines() if line.startswith("0::")), "/")
    free = [1 << 62]
    for folder in (Path(group), *Path(group).parents):
        place = root / folder.relative_to("/")
        limit = place / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            pages = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            # Pages of files that nobody uses are given up on demand.
            used = int((place / "memory.current").read_text()) - int(pages.get("inactive_file", 0))
            free.append(max(int(most) - used, 0))
    return free


def batches(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Positions in `sizes` (bytes), in as few batches of at most `limit` bytes as like sizes allow.

    Each batch holds neighbours in size, so that rows of like length decode together. What exceeds `limit` is alone.
    """
    filled: list[list[int]] = []
    total = 0
    for position in sorted(range(len(sizes)), key=lambda position: sizes[position]):
        if not filled or total + sizes[position] > limit:
            filled.append([])
            total = 0
        filled[-1].append(position)
        total += sizes[position]
    return [sorted(batch) for batch in filled]


def kv_heads(config: PreTrainedConfig) -> int:
    """KV heads of a layer, under whichever name an architecture has them; the most if layers differ.

    Without one, each query head has its own.
    """
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads := getattr(config, name, None):
            return heads if isinstance(heads, int) else max(heads)
    return config.num_attention_heads


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model of this shape takes beside its weights for a prompt of `length` tokens; not measured.

    What a configuration does not name is taken as most architectures have it.
    """

    model: PreTrainedModel
    length: int

    @property
    def prompt(self) -> int:
        """The complete keys and values of the prompt."""
        evicting, sliding = self._layers
        return (evicting * self.length + sliding) * self._token_bytes

    def activations(self, chunk: int) -> int:
        """The widest moment of a layer's forward pass over `chunk` tokens: in the MLP, or just before attention."""
        config = self._config
        itemsize = self.model.dtype.itemsize
        intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        widest = max(2 * config.hidden_size + 3 * intermediate, 8 * config.hidden_size)
        # With sdpa a chunk of many has a mask; on CUDA that takes keys and values repeated for every query head, too.
        mask = chunk * self.length * (1 + itemsize) if chunk < self.length else 0
        heads = 2 * config.num_attention_heads * self._head_dim * self.length * itemsize
        repeated = heads if mask and self.model.device.type == "cuda" else 0
        return chunk * widest * itemsize + mask + repeated

    def scores(self, scorers: int, window: int) -> int:
        """All layers' scores and rankings, and one layer's float32 keys and attention of the widest `window`."""
        config = self._config
        kept = scorers * self._layers[0] * kv_heads(config) * self.length * (4 + 8)
        passing = 3 * config.num_attention_heads * window + kv_heads(config) * self._head_dim
        return kept + passing * self.length * 4

    def row(self, budget: int | None, room: int) -> int:
        """One setting's cache and logits while it decodes `room` new tokens; a budget of None keeps the prompt."""
        evicting, sliding = self._layers
        kept = self.length if budget is None else min(budget, self.length)
        return (evicting * (kept + ROUNDING + room) + sliding) * self._token_bytes + 8 * self._config.vocab_size

    @property
    def _config(self) -> PreTrainedConfig:
        return self.model.config.get_text_config(decoder=True)

    @property
    def _head_dim(self) -> int:
        config = self._config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    @property
    def _token_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * kv_heads(self._config) * self._head_dim * self.model.dtype.itemsize

    @property
    def _layers(self) -> tuple[int, int]:
        """How many layers evict, and tokens that the sliding-window layers hold, all together."""
        kinds, arguments = get_layer_types_and_kwargs(self._config)
        # A window of n tokens is n − 1 cached ones and the one that attends to them.
        sliding = sum(
            min(self.length, options["sliding_window"] - 1) for options in arguments if options.get("sliding_window")
        )
        return kinds.count("full_attention"), sliding
