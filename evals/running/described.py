"""Describe methods as plain data that is equal in every process, for the hash of their results folder."""

import copyreg
import dataclasses
import datetime
import decimal
import fractions
import functools
import hashlib
import json
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import PurePath
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskv.checking import FrozenMapping
from compresskv.errors import UserError

TEXTS = (
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, np.integer, np.bool_, PurePath),
    *(complex, bytes, range, slice, fractions.Fraction, decimal.Decimal),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
)
"""Types whose values are fully described by `str`."""

PLAIN = (list, tuple, dict, set, frozenset)

CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc)


def describe(value: Any, where: str = "method") -> Any:
    """Return a complete description of a method as JSON-compatible data: class names and field values.

    Equal methods have equal descriptions in every process, and different methods have different descriptions. Tensors
    and arrays are described by their bytes, functions and classes by their import name, other objects by their class
    and attributes. `where` names the value in messages. Raises `UserError` for values that cannot be described, such as
    a lambda or an open file.
    """
    try:
        return _described(value, where, ())
    except RecursionError:
        raise _refused(where, "it is nested too deeply") from None


def canonical(identity: Any, where: str) -> str:
    """Return `identity` as JSON with sorted keys, using `describe` for values that JSON does not support.

    Raises `UserError` if it cannot be written as JSON.
    """
    try:
        return json.dumps(identity, sort_keys=True, default=functools.partial(describe, where=where))
    except UserError:
        raise
    except (TypeError, ValueError, RecursionError) as error:  # such as keys that are not strings, or a cycle
        why = " ".join(str(error).split())
        raise UserError(where, "use strings as keys", why=f"its identity cannot be written as JSON ({why})") from error


def _described(value: Any, where: str, above: tuple[int, ...]) -> Any:
    """Describe `value`. `above` holds the ids of the objects that contain it, to detect cycles."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such numbers
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, TEXTS):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Tensor):
        return {"tensor": [str(value.dtype), list(value.shape), _sha256(_bytes(value, where))]}
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject:
            raise _refused(where, "an array of objects has no bytes to compare")
        return {"array": [value.dtype.str, list(value.shape), _sha256(value.tobytes())]}
    if id(value) in above:
        raise _refused(where, f"a {type(value).__name__} that contains itself")

    def part(name: str, inner: Any) -> Any:
        return _described(inner, f"{where}{name}", (*above, id(value)))

    if isinstance(value, CODE):
        return _code(value, where, part)
    if isinstance(value, functools.partial):
        arguments = [part(".func", value.func), part(".args", value.args), part(".keywords", value.keywords)]
        return {"partial": arguments}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: part(f".{name}", getattr(value, name)) for name in names}
        others = _attributes(value, getattr(value, "__dict__", {}), part, names)
        return {type(value).__name__: {**fields, **others}}
    if isinstance(value, PLAIN) and type(value) not in (*PLAIN, FrozenMapping):  # a subclass may have more state
        return {_code(type(value), where, part): _state(value, where, part)}
    if isinstance(value, (list, tuple)):
        return [part(f"[{place}]", item) for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = [[part(" key", key), part(f"[{key!r}]", item)] for key, item in value.items()]
        return {"mapping": _sorted(pairs)}
    if isinstance(value, AbstractSet):
        return {"set": _sorted(part(" item", item) for item in value)}
    state = _state(value, where, part)
    return {_code(type(value), where, part): state}


def _attributes(value: Any, state: Mapping[str, Any], part: Callable, known: Collection[str] = ()) -> dict[str, Any]:
    """Describe the attributes in `state` except the `known` attributes and cached properties."""
    return {
        name: part(f".{name}", inner)
        for name, inner in state.items()
        if name not in known and not isinstance(getattr(type(value), name, None), functools.cached_property)
    }


def _state(value: Any, where: str, part: Callable) -> Any:
    """Describe the state that distinguishes `value` from other instances of its class, as `copy` would read it."""
    try:
        reducer = copyreg.dispatch_table.get(type(value))
        made: Any = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception as error:  # the type depends on the class, such as a lock or a generator
        raise _refused(where, f"a {type(value).__name__} cannot be described") from error
    if isinstance(made, str):  # a name in its module, such as the name of a cached function
        return _imported(value, str(getattr(value, "__module__", "builtins")), made, where)
    arguments, state, items, pairs = [*made[1:5], None, None, None][:4]
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # a class with __slots__
        state = {**(state[0] or {}), **state[1]}
    described = _attributes(value, state or {}, part) if isinstance(state, (dict, types.NoneType)) else part("", state)
    others = [argument for argument in arguments if argument is not type(value)]
    rest = [part("", given) for given in (others, list(items or ()), list(pairs or ()))]
    return [described, *rest] if any(rest) else described


def _code(value: Any, where: str, part: Callable) -> Any:
    """Return the import name of a function or a class; for a bound method, its name and the object it is bound to."""
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        return {"method": [part("", owner), value.__name__]}
    module = "numpy" if isinstance(value, np.ufunc) else owner.__name__ if owner else str(value.__module__)
    builtin = isinstance(value, (np.ufunc, types.BuiltinFunctionType))  # `__qualname__` may not be importable
    return _imported(value, module, value.__name__ if builtin else value.__qualname__, where)


def _imported(value: Any, module: str, name: str, where: str) -> str:
    """Return `module:name`. Raises `UserError` unless it imports `value`."""
    try:
        found = resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not value:
        raise _refused(where, f"{name} of {module} cannot be imported by that name")
    return f"{module}:{name}"


def _bytes(tensor: Tensor, where: str) -> bytes:
    try:
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    except (RuntimeError, NotImplementedError, TypeError) as error:  # such as a sparse or a meta tensor
        raise _refused(where, "a tensor whose bytes cannot be read") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sorted(described: Iterable[Any]) -> list[Any]:
    return sorted(described, key=json.dumps)


def _refused(where: str, what: str) -> UserError:
    return UserError(
        where,
        "make it a frozen dataclass whose fields are numbers, texts, or tuples of these",
        why=f"{what}, so its results could not be identified and resumed",
    )
