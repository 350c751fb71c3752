"""Memory in use and free on the devices of a model, and which settings fit in one batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from compresskv.errors import PromptError

SHARE = 0.8
"""Share of free memory that may be planned. The rest is for fragmentation and other processes."""


def used_bytes(model: PreTrainedModel) -> int:
    """Return the bytes in use now: tensors on the GPUs of `model` or, without GPUs, all of this process."""
    if devices := gpus(model):
        return sum(map(torch.cuda.memory_allocated, devices))
    return psutil.Process().memory_info().rss


def free_by_device(model: PreTrainedModel) -> dict[torch.device, int]:
    """Return the bytes that this process can still allocate on each GPU of `model` or, without GPUs, on the CPU."""
    if devices := gpus(model):
        return {device: _cuda_free(device) for device in devices}
    return {torch.device("cpu"): min(psutil.virtual_memory().available, *_cgroup_free())}


def free_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of caches that still fit. Caches are spread over devices like the layers; the fullest device is
    the limit."""
    shares = layer_shares(model)
    return min(int(free / shares[device]) for device, free in free_by_device(model).items() if shares.get(device))


def layer_shares(model: PreTrainedModel) -> dict[torch.device, float]:
    """Return the share of the model's layers on each of its GPUs or, without GPUs, on the CPU."""
    devices = gpus(model)
    if not devices:
        return {torch.device("cpu"): 1.0}
    layers = [next(layer.parameters()).device for layer in model.get_decoder().layers]
    on_gpus = [device for device in layers if device in devices]
    return {device: on_gpus.count(device) / max(len(on_gpus), 1) for device in devices}


def gpus(model: PreTrainedModel) -> list[torch.device]:
    """Return the CUDA devices that parameters of `model` are on."""
    return [device for device in dict.fromkeys(p.device for p in model.parameters()) if device.type == "cuda"]


def _cuda_free(device: torch.device) -> int:
    # Memory that torch holds in reserve is free for new tensors.
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _cgroup_free(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the bytes that each limit of a cluster or container (cgroup version 2) leaves to this process."""
    if not process.exists():
        return [1 << 62]
    group = next((line[3:] for line in process.read_text().splitlines() if line.startswith("0::")), "/")
    free = [1 << 62]
    for folder in (Path(group), *Path(group).parents):
        place = root / folder.relative_to("/")
        limit = place / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            pages = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            # The kernel reclaims unused file pages on demand.
            used = int((place / "memory.current").read_text()) - int(pages.get("inactive_file", 0))
            free.append(max(int(most) - used, 0))
    return free


def ran_out(error: BaseException | None) -> bool:
    """Return whether `error` is an out-of-memory error: from torch on a GPU, from torch's allocator on the CPU, or from
    Python."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def memory_as(refusal: PromptError) -> Iterator[None]:
    """Replace out-of-memory errors inside the block by `refusal`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if ran_out(error):
            raise refusal from error
        raise


def batches(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Group indices of `sizes` (bytes) into batches of at most `limit` bytes, filled in ascending order of size.

    Each batch holds neighbours in size, so that rows of similar length decode together. A size above `limit` has its
    own batch.
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
