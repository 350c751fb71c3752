"""Checks of the installed transformers version: whether it is supported, and what its cache argument is called.

transformers 5.24 renamed the argument `past_key_values` of `forward` and `generate` to `cache`.
"""

import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from compresskv.errors import UserError

OLDEST = "5.20"
"""Oldest supported transformers. `make test-versions` tests the engine with it and with the newest allowed version."""

CHUNKS_GO_ON = "5.23"
"""Oldest version whose chunked `generate` (`prefill_chunk_size`) continues after the tokens that its cache holds."""

NAMES = ("cache", "past_key_values")


def refuse_older() -> None:
    """Raise `UserError` if transformers is older than `OLDEST`."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:  # a source tree on the path
        return
    if Version(installed) < Version(OLDEST):
        raise UserError(
            "transformers",
            f"pip install 'transformers>={OLDEST}'",
            value=installed,
            why=f"compresskv needs {OLDEST} or newer",
        )


def refuse_second_chunks(chunk: int, held: int) -> None:
    """Raise `UserError` if `generate` would feed the `held` tokens of a cache again, `chunk` at a time."""
    import transformers

    if Version(transformers.__version__) < Version(CHUNKS_GO_ON):
        raise UserError(
            "prefill_chunk_size",
            f"pass prefill_chunk_size=None, or install transformers>={CHUNKS_GO_ON}",
            value=chunk,
            why=f"transformers={transformers.__version__} would pass the {held} cached tokens to the model again",
        )


def cache_argument(model: Any) -> str:
    """Return the name of the cache argument in the forward of `model`."""
    return _named_by(type(model).forward) or generate_argument()


def generate_argument() -> str:
    """Return the name of the cache argument of `generate`, which is the same in every model."""
    from transformers import GenerationMixin

    name = _named_by(GenerationMixin.prepare_inputs_for_generation)
    assert name is not None
    return name


@cache
def _named_by(function: Callable[..., Any]) -> str | None:
    """Return the name of the cache parameter of `function`; None if it has no such parameter."""
    parameters = inspect.signature(function).parameters
    return next((name for name in NAMES if name in parameters), None)
