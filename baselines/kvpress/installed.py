"""The installed kvpress: its version, and its import, which must not change transformers."""

from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from compresskv.errors import UserError

OLDEST = (0, 5, 5)

INSTALL = "pip install 'compresskv-bench[kvpress]' && pip install --no-deps 'kvpress>=0.5.5'"


def kvpress_version() -> str:
    """Return the version of kvpress. Raises `UserError` if it is not installed, or older than 0.5.5."""
    try:
        found = version("kvpress")
    except PackageNotFoundError:
        raise UserError(
            "method", INSTALL, why="the methods of kvpress need the extra `kvpress`, and the package kvpress"
        ) from None
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdecimal())
    if numbers < OLDEST:
        raise UserError("method", INSTALL, why=f"kvpress {found} is older than 0.5.5, which corrects several presses")
    return found


@lru_cache(maxsize=1)
def kvpress() -> ModuleType:
    """Import the package kvpress once and return it.

    Its import replaces every attention function of transformers; the previous functions are restored. Raises
    `UserError` if it is not installed, or if a package that it imports is missing.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    kvpress_version()
    before = dict(functions)
    try:
        return import_module("kvpress")
    except ImportError as error:
        raise UserError("method", INSTALL, why=f"kvpress cannot be imported ({error})") from error
    finally:
        for name, function in before.items():
            if functions[name] is not function:
                del functions[name]  # transformers' own function applies again
            if functions.get(name) is not function:
                functions[name] = function
