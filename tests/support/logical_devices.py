"""A fake GPU: tensors report a CUDA device, but their values are computed on the CPU.

`LogicalTensor` wraps a CPU tensor and reports a device; under `logical_devices` new tensors do the same. An
operation on tensors of different devices is an error, as on real GPUs. The work for a GPU is counted: launches
(operations that are not views), synchronisations (the host waits for a value) and host-to-device copies.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from compresskv.engine.live_bytes import LiveBytes

aten = torch.ops.aten

CPU = torch.device("cpu")


@dataclass
class Counts:
    """Counts of the operations that a device would execute.

    `moves`: copies from one device to another. `attention`: distinct problems of scaled_dot_product_attention. `live`:
    if set, counts the bytes alive.
    """

    launches: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    uploads: int = 0
    moves: int = 0
    attention: set[Any] = field(default_factory=set)
    live: LiveBytes | None = None

    @property
    def total(self) -> int:
        return self.launches.total()


_counts = Counts()

SYNCHRONISING = {"_local_scalar_dense": 1, "nonzero": 1, "bincount": 2, "masked_select": 1, "equal": 1, "is_nonzero": 1}
"""Operations that make the host wait for the device, and how many times."""

NO_KERNEL = {
    "_local_scalar_dense",
    "_unsafe_view",
    "alias",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}
"""Operations that launch nothing although their schema does not mark them as views."""


class LogicalTensor(Tensor):
    """A CPU tensor that reports another device."""

    inner: Tensor
    logical: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=False,
        )
        made.inner, made.logical = inner, device
        return made

    def __repr__(self) -> str:
        return f"LogicalTensor({self.inner!r}, {self.logical})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "LogicalTensor":
        """The copies of views share their storage, as torch's own do; that would ask the device for it."""
        return memo.setdefault(id(self), LogicalTensor(copy.deepcopy(self.inner, memo), self.logical))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in INTERCEPTED:
            return INTERCEPTED[func](*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to all that lists, tuples and dictionaries hold (torch's `tree_map` is much slower)."""
    kind = type(value)
    if kind is dict:
        return {name: _mapped(function, part) for name, part in value.items()}
    return kind([_mapped(function, part) for part in value]) if kind in (list, tuple) else function(value)


def _tensors(*values: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and dictionaries."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple, dict)):
            found += _tensors(*(value.values() if isinstance(value, dict) else value))
    return found


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run `func` on the wrapped tensors, count it, and wrap the results."""
    name = func.overloadpacket.__name__
    if func in (aten._to_copy.default, aten.copy_.default):
        return _copy(func, args, kwargs)
    device = _common_device(name, args, kwargs)
    if "device" in kwargs and kwargs["device"] is not None:
        device = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": CPU}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if not func.is_view and name not in NO_KERNEL:
        _counts.launches[name] += 1
    if name in SYNCHRONISING:
        _counts.syncs[name] += SYNCHRONISING[name]
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        _counts.syncs[name] += 1
    if name in ("index", "index_put_", "_index_put_impl_"):
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        _counts.syncs[name] += sum(i.dtype == torch.bool for i in indices)
        _counts.uploads += sum(i.device == CPU and device != CPU for i in indices)
    out = func(*_mapped(_unwrap, args), **_mapped(_unwrap, kwargs))
    if func._schema.name.endswith("_") and args and isinstance(args[0], LogicalTensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return _mapped(lambda value: _wrap(value, device), out)


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    source = args[1] if func is aten.copy_.default else args[0]
    target = args[0].device if func is aten.copy_.default else torch.device(kwargs.get("device") or source.device)
    if source.device != target:
        if target == CPU:
            _counts.syncs["to_cpu"] += 1
        elif source.device == CPU:
            _counts.uploads += 1
    _counts.launches["copy"] += 1
    if func is aten.copy_.default:
        func(*_mapped(_unwrap, args), **kwargs)
        return args[0]
    out = func(*_mapped(_unwrap, args), **{**kwargs, "device": CPU} if "device" in kwargs else kwargs)
    return _wrap(out, target)


def _common_device(name: str, args: Any, kwargs: Any) -> torch.device:
    """Return the common device of all tensors; 0-dimensional tensors and indices may be on the CPU.

    Raises `RuntimeError` for different devices.
    """
    tensors = _tensors(args, kwargs)
    indexed = name in ("index", "index_put_", "index_put", "_index_put_impl_")
    devices = {t.device for t in tensors if t.dim()} or {t.device for t in tensors} or {CPU}
    if len(devices) > 1 and indexed:
        devices -= {CPU}
    if len(devices) > 1:
        raise RuntimeError(f"{name}: tensors on different devices: {sorted(map(str, devices))}")
    return devices.pop()


def _wrap(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, LogicalTensor) or device == CPU:
        return value
    if _counts.live:
        _counts.live.add(value)
    return LogicalTensor(value, device)


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, LogicalTensor) else value


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Count one launch that allocates only its output.

    The recorded problem is what a kernel library would make a plan for.
    """
    mask = attn_mask
    if isinstance(attn_mask, CausalBias):
        # Only kernels that support this bias need no memory for a mask, and only flash supports it with groups.
        assert attn_mask.variant == CausalVariant.LOWER_RIGHT
        new, total = attn_mask.seq_len_q, attn_mask.seq_len_kv
        attn_mask, mask = None, torch.ones(new, total, dtype=torch.bool).tril(total - new)
    device = _common_device("scaled_dot_product_attention", (query, key, value, attn_mask), {})
    _counts.launches["scaled_dot_product_attention"] += 1
    _counts.attention.add(
        tuple(
            None if t is None else (tuple(t.shape), t.stride()) if isinstance(t, Tensor) else t
            for t in (query, key, value, attn_mask, is_causal, enable_gqa)
        )
    )
    inner = [_unwrap(t) for t in (query, key, value, mask)]
    out = F.scaled_dot_product_attention(*inner, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return _wrap(out, device)


def _tolist(tensor: Tensor) -> Any:
    _counts.syncs["tolist"] += 1
    return tensor.inner.tolist()


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replace `Tensor.to`: change device, dtype or both."""
    places = [value for value in (*args, kwargs.get("device")) if isinstance(value, (str, torch.device))]
    dtypes = [value for value in (*args, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
    for value in args:
        if isinstance(value, Tensor):
            places, dtypes = [value.device], [value.dtype]
    source, target = tensor.device, torch.device(places[0]) if places else tensor.device
    inner = _unwrap(tensor)
    dtype = dtypes[0] if dtypes else inner.dtype
    if source == target and dtype == inner.dtype:
        return tensor
    _counts.launches["copy"] += 1
    if source != target:
        _counts.uploads += source == CPU
        _counts.syncs["to_cpu"] += target == CPU
        _counts.moves += CPU not in (source, target)
    return _wrap(inner.to(dtype, copy=True), target)


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    _advanced(tensor, index)
    return _wrap(tensor.inner[_mapped(_unwrap, index)], tensor.device) if _logical(tensor) else tensor[index]


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    if not _advanced(tensor, index):
        _counts.launches["copy"] += 1
    if isinstance(value, Tensor):
        _common_device("setitem", (tensor, value), {})
    tensor.inner[_mapped(_unwrap, index)] = _unwrap(value)


def _advanced(tensor: Tensor, index: Any) -> bool:
    """Count the operations of indexing with tensors or lists; returns whether the index has any."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    lists = sum(isinstance(part, list) for part in parts)
    _common_device("index", (tensor, tensors), {})
    if tensors or lists:
        _counts.launches["index"] += 1
        _counts.uploads += lists + sum(part.device == CPU for part in tensors)
        _counts.syncs["index"] += sum(part.dtype == torch.bool for part in tensors)
    return bool(tensors or lists)


def _logical(tensor: Tensor) -> bool:
    return isinstance(tensor, LogicalTensor)


def _contiguous(tensor: Tensor) -> Tensor:
    if tensor.inner.is_contiguous():
        return tensor
    _counts.launches["copy"] += 1
    return _wrap(tensor.inner.contiguous(), tensor.device)


def _host_value(kind: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def value(tensor: Tensor) -> Any:
        _counts.syncs["item"] += 1
        return kind(tensor.inner)

    return value


INTERCEPTED = {
    Tensor.contiguous: _contiguous,
    Tensor.item: _host_value(Tensor.item),
    Tensor.__int__: _host_value(int),
    Tensor.__float__: _host_value(float),
    Tensor.__bool__: _host_value(bool),
    Tensor.to: _to,
    Tensor.cpu: lambda tensor: _to(tensor, CPU),
    Tensor.__getitem__: _getitem,
    Tensor.__setitem__: _setitem,
    F.scaled_dot_product_attention: _attention,
    Tensor.tolist: _tolist,
    Tensor.untyped_storage: lambda tensor: tensor.inner.untyped_storage(),
    Tensor.numpy: lambda tensor, **_: (_ for _ in ()).throw(TypeError(f"numpy() of a tensor on {tensor.device}")),
}


class _Factories(TorchFunctionMode):
    """Creates new tensors on the fake devices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if (device is None and func is not Tensor.to) or any(map(_logical, _tensors(args, kwargs))):
            return func(*args, **kwargs)
        if func is Tensor.to:
            goes_to = [v for v in (*args[1:], device) if isinstance(v, (str, torch.device))]
            if goes_to and torch.device(goes_to[0]).type == "cuda":
                return _to(*args, **kwargs)
        if device is not None and torch.device(device).type == "cuda":
            out = func(*args, **{**kwargs, "device": CPU})
            if isinstance(out, Tensor):
                if func in (torch.tensor, torch.as_tensor):
                    _counts.uploads += 1
                elif func not in (torch.empty,):
                    _counts.launches[func.__name__] += 1
                return _wrap(out, torch.device(device))
            return out
        return func(*args, **kwargs)


@contextmanager
def logical_devices() -> Iterator[Counts]:
    """Allow tensors on fake CUDA devices; yields the counts of operations."""
    with counting() as counts, _Factories():
        yield counts


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the operations in this context; yields the counts."""
    global _counts
    before, _counts = _counts, Counts()
    try:
        yield _counts
    finally:
        _counts = before


def place(model: nn.Module, devices: dict[str, str] | str) -> nn.Module:
    """Make parameters and buffers of `model` report a device, or the device of the longest matching prefix."""

    def device_of(name: str) -> torch.device:
        if isinstance(devices, str):
            return torch.device(devices)
        prefixes = [prefix for prefix in devices if not prefix or f"{name}.".startswith(f"{prefix}.")]
        return torch.device(devices[max(prefixes, key=len)])

    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                wrapped = LogicalTensor(parameter.detach(), device_of(f"{path}.{name}".lstrip(".")))
                module._parameters[name] = nn.Parameter(wrapped, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = LogicalTensor(buffer, device_of(f"{path}.{name}".lstrip(".")))
    return model


def spread(model: PreTrainedModel, layers: Sequence[str], others: str) -> PreTrainedModel:
    """Make each layer of `model` report its device in `layers`, and embeddings, norm and head `others`.

    Inputs of a module are moved to its device, as accelerate does for `device_map`.
    """
    places = {"": others, **{f"model.layers.{index}": device for index, device in enumerate(layers)}}
    for name, module in place(model, places).named_modules():
        if name in places and name:
            module.register_forward_pre_hook(_moving_to(torch.device(places[name])), with_kwargs=True)
    for module in (model.model.norm, model.lm_head):
        module.register_forward_pre_hook(_moving_to(torch.device(others)), with_kwargs=True)
    return model


def _moving_to(device: torch.device) -> Callable[..., Any]:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _mapped(move, args), {
            name: value if name == "past_key_values" else _mapped(move, value) for name, value in kwargs.items()
        }

    return hook


def on_the_cpu(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a CPU `kernel` for logical tensors of one device. A call is one launch that allocates only its output."""

    def launched(*args: Any, **kwargs: Any) -> Tensor:
        device = _common_device(kernel.__name__, args, kwargs)
        _counts.launches[kernel.__name__] += 1
        return _wrap(kernel(*_mapped(_unwrap, args), **_mapped(_unwrap, kwargs)), device)

    return launched
