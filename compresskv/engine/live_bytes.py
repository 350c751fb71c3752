"""Count the bytes of live tensors by their storages, independent of the allocator."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes:
    """Counts the storages of the tensors passed to `add` while they are alive, except the storages of `ignored`
    tensors."""

    def __init__(self, ignored: Iterable[Tensor] = ()):
        self.ignored = {tensor.untyped_storage().data_ptr() for tensor in ignored}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a new tensor, or of a view."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.ignored:
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now())

    def now(self) -> int:
        """Return the bytes alive now."""
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        return sum(size for _, size in self.storages.values())

    def reset(self) -> None:
        """Reset the peak to the bytes alive now."""
        self.peak = self.now()


class LiveBytesMode(TorchDispatchMode):
    """Context manager that passes the outputs of every operation on the CPU to `live`."""

    def __init__(self, ignored: Iterable[Tensor] = ()):
        super().__init__()
        self.live = LiveBytes(ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.live.add(value)
        return out
