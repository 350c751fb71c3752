"""Check external values against the types and ranges in the annotations of their fields.

Each field declares its type and range once, in its annotation: `Annotated[int, Ge(1)]`, `Literal["a", "b"] | None`.
Types are strict: true is not a number, and an int is accepted as a float, but a float is not accepted as an int. Every
failure is a `UserError` of one sentence: field=value: allowed values.
"""

import dataclasses
import difflib
import re
import types
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from compresskv.errors import UserError, readable

__all__ = [
    "AfterValidator",
    "AllowInfNan",
    "BeforeValidator",
    "FrozenMapping",
    "Ge",
    "Gt",
    "Le",
    "LineText",
    "Lt",
    "MaxLen",
    "MinLen",
    "Name",
    "PathText",
    "Sha256",
    "Text",
    "checked",
    "checked_value",
    "frozen",
    "refuse_unknown",
]

T = TypeVar("T")

LONGEST_NAME = 100
"""Maximum length of a name in UTF-8 bytes. A file name made of two such names still fits the limit of file systems."""


class FrozenMapping(dict[str, Any]):
    """A hashable mapping, for use in keys. Equal mappings have equal hashes."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def frozen(value: Any) -> Any:
    """Convert lists in `value` to tuples and mappings to `FrozenMapping`s, recursively."""
    if isinstance(value, Mapping):
        return FrozenMapping({key: frozen(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


def _one_folder(name: str) -> str:
    if name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name) or name.isspace():
        raise ValueError("choose a name without slashes and control characters that does not begin with a period")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"choose a name of at most {LONGEST_NAME} bytes")
    return name


def _no_nul(path: str) -> str:
    if "\0" in path:
        raise UserError(None, "take it out", why="it has a NUL character")
    return path


def _one_line(text: str) -> str:
    if any(c != "\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise UserError(None, "take it out", why="it has a line break, or another control character")
    return text


def _sha256(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("choose the 64 hexadecimal digits of the file's sha256, in lower case, or null")
    return digest


Name = Annotated[str, MinLen(1), AfterValidator(_one_folder)]
"""A name that can be used as a folder name: not empty, and without path separators."""

PathText = Annotated[str, MinLen(1), MaxLen(4096), AfterValidator(_no_nul)]
"""A path, or any other non-empty text."""

LineText = Annotated[str, MinLen(1), MaxLen(4096), AfterValidator(_one_line)]
"""Text that is inserted into one line of a script."""

Text = Annotated[str, AfterValidator(_no_nul)]
"""Text of any length."""

Sha256 = Annotated[str, AfterValidator(_sha256)]
"""The sha256 of a file."""


def checked(where: str, kind: type[T], values: Any) -> T:
    """Build the dataclass `kind` from the mapping `values`. `where`: the name of `values` in error messages.

    Raises `UserError` for an unknown field, a missing required field, or a value that its field does not accept.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise UserError(where, f"choose a mapping of its settings, {', '.join(fields)}", value=values)
    refuse_unknown(where, values, fields)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(_dotted(where, name), "give it a value", why="not set")
    hints = type_hints(kind)  # type: ignore[arg-type]
    return kind(**{name: checked_value(_dotted(where, name), hints[name], value) for name, value in values.items()})


def checked_value(where: str, hint: Any, value: Any) -> Any:
    """Convert `value` to the annotation `hint`: lists become tuples, and integers become floats if needed.

    Raises `UserError` if it does not match. NaN and infinity are refused unless the annotation contains
    `AllowInfNan()`.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and not isinstance(value, hint):
        return checked(where, hint, value)
    value = frozen(value)
    try:
        return frozen(_adapter(hint).validate_python(value))
    except ValidationError as error:
        raise _explained(where, hint, value, error) from None


def refuse_unknown(where: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Raise `UserError` for the first of `given` that is not in `known`, and suggest the nearest known name."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        nearest = difflib.get_close_matches(str(name), known, 1)
        if nearest:
            fix = f"did you mean {_dotted(where, nearest[0])}?"
        else:
            fix = f"choose one of {', '.join(sorted(known))}" if known else "this node has no settings"
        raise UserError(_dotted(where, readable(name)), fix, why="no such setting")


def allowed(hint: Any) -> str:
    """Describe the values that an annotation accepts."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return allowed(arguments[0]) + _range(arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(option) for option in sorted(arguments, key=lambda option: option is type(None)))
    if origin is Literal:
        return f"one of {', '.join(map(readable, arguments))}" if len(arguments) > 1 else readable(arguments[0])
    if origin is tuple and arguments[-1:] == (...,):
        return f"a list, each item {allowed(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, "a mapping of its settings" if dataclasses.is_dataclass(hint) else "a value")


def _range(metadata: Iterable[Any]) -> str:
    """Describe in words the range given by the annotations of a number, text or list."""
    words = []
    for limit in metadata:
        match limit:
            case Ge(ge=least):
                words.append(f"at least {least}")
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Le(le=most):
                words.append(f"at most {most}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
            case MinLen(min_length=1):
                words.append("not empty")
            case MinLen(min_length=least):
                words.append(f"of at least {least}")
            case MaxLen(max_length=most):
                words.append(f"no longer than {most}")
    return f", {' and '.join(words)}" if words else ""


def _explained(where: str, hint: Any, value: Any, error: ValidationError) -> UserError:
    """Return the error for the first wrong item of `value`, at the deepest level that pydantic reports."""
    details = error.errors(include_url=False, include_input=False)
    steps = max((_steps(value, detail["loc"]) for detail in details), key=len)
    details = [detail for detail in details if _steps(value, detail["loc"]) == steps]
    for step in steps:
        where = _dotted(where, readable(step)) if isinstance(value, Mapping) else f"{where}[{step}]"
        value, hint = value[step], _inner(hint, step)
    for detail in details:
        if detail["type"] == "value_error":
            said = detail["ctx"]["error"]
            if isinstance(said, UserError):
                return UserError(where, said.fix, value=value, why=said.why)
            return UserError(where, str(said), value=value)
    return UserError(where, f"choose {allowed(hint)}", value=value)


def _steps(value: Any, place: tuple[Any, ...]) -> list[Any]:
    """Return the path to the item of `value` at pydantic's location `place`, without the union alternatives in it."""
    steps = []
    for step, following in zip_longest(place, place[1:]):
        if isinstance(value, Mapping):
            inside = step in value and following != "[key]"
        else:
            inside = isinstance(value, tuple) and isinstance(step, int) and step < len(value)
        if inside:
            steps.append(step)
            value = value[step]
    return steps


def _inner(hint: Any, step: Any) -> Any:
    """Return the annotation of the item at `step` of a list or a mapping."""
    for option in _options(hint):
        origin, items = get_origin(option), get_args(option)
        if origin is tuple:
            return items[0] if items[-1] is Ellipsis else items[step]
        if origin in (dict, Mapping):
            return items[1]
    return Any


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation, without their ranges."""
    if get_origin(hint) is Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for inner in get_args(hint) for option in _options(inner))
    return (hint,)


@lru_cache(maxsize=1024)
def type_hints(annotated: Any) -> dict[str, Any]:
    """Return the annotations of a class or function, including their ranges."""
    return get_type_hints(annotated, include_extras=True)


@lru_cache(maxsize=1024)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    options = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(hint, config=options)
    except PydanticUserError:  # raised for dataclasses; their values are checked field by field
        return TypeAdapter(hint)


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
