"""Whether what a file holds is what its schema says, for those who read files that others may have changed."""

from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from compresskv.checking import Ge, Le, MaxLen, MinLen
from compresskv.errors import readable

LARGEST = 10**15
"""No number of a result is as large; those that are cannot be drawn."""

Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
Size = Annotated[float, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(0), Le(LARGEST)]
Label = Annotated[str, MinLen(1), MaxLen(400)]
"""A name that may have been a folder's, or was made of some."""

Bounds = Annotated[list[Number], MinLen(2), MaxLen(2)] | None

exactly = with_config(ConfigDict(strict=True, allow_inf_nan=False))
"""Decorates the `TypedDict` of a file: true is no number, a text is no list, and numbers are finite."""


def misfit(kind: Any, value: Any) -> str:
    """What of `value` is not as the `TypedDict` `kind` says, in a phrase that names the field; "" if all is."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{readable(place)}={readable(first['input'], 40)}: {first['msg']}" if place else first["msg"]
    except (RecursionError, OverflowError) as error:
        return str(error)
    return ""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
