"""A step recorded on the CPU as a CUDA graph records it: operations on fixed memory, which run again without Python."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.support import flash_attention


class Recorder(TorchDispatchMode):
    """Records the operations inside the block. Memory from outside is restored at the end: nothing has run yet."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.made, self.before = {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert "_local_scalar_dense" not in str(func), "a step must not wait for the device"
        aliases = [argument.alias_info for argument in func._schema.arguments]
        for argument, value, alias in zip(func._schema.arguments, args, aliases, strict=False):
            if alias is not None and alias.is_write:
                self._save(argument, value)
        out = func(*args, **kwargs)
        outputs = [value for value in tree_flatten(out)[0] if isinstance(value, Tensor)]
        views = any(value.alias_info is not None for value in func._schema.returns)
        writes = any(alias is not None and alias.is_write for alias in aliases)
        if writes or not views:
            self.operations.append((func, args, kwargs, [] if writes else outputs))
        for value in outputs:
            if not (views or writes):
                self.made[value.untyped_storage().data_ptr()] = value  # alive, so that no other tensor gets its memory
        return out

    def _save(self, argument, value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.made and storage.data_ptr() not in self.before:
            self.before[storage.data_ptr()] = (storage, storage.clone())

    def restore(self):
        for storage, content in self.before.values():
            storage.copy_(content)

    def replay(self):
        for func, args, kwargs, outputs in self.operations:
            again = [value for value in tree_flatten(func(*args, **kwargs))[0] if isinstance(value, Tensor)]
            for old, new in zip(outputs, again, strict=False):
                if new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
                    old.copy_(new)


@torch.no_grad()
def recorded(step):
    """`graph.captured` for the CPU."""
    with Recorder() as recorder:
        out = step()
    recorder.restore()
    return out, recorder.replay


@torch.library.custom_op("compresskv_tests::varlen_attn", mutates_args=())
def _varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    firsts_q: Tensor,
    firsts_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    used: Tensor,
) -> Tensor:
    window = (-1, 0) if causal else (-1, -1)
    return flash_attention.varlen_attn(
        query,
        key,
        value,
        firsts_q,
        firsts_k,
        max_q,
        max_k,
        scale=scale,
        window_size=window,
        enable_gqa=True,
        seqused_k=used,
    )


def varlen_attn(*args, scale, window_size, seqused_k, enable_gqa, num_splits):
    """torch's `varlen_attn` as one operation that can be recorded, although its stand-in reads lengths on the host."""
    return _varlen_attn(*args, scale, window_size == (-1, 0), seqused_k)
