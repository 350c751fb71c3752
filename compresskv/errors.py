"""Messages for the user: errors in their input, and notes."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHOWN = 80
"""Maximum number of characters of a value that an error quotes."""


class UserError(ValueError):
    """A mistake in the user's input, or a request that the machine cannot serve. Printed without a traceback.

    `field`: the setting (dotted path), argument, option or field of a file that is wrong; None for a whole file or run.
    `value`: its value, or `...` if no value is wrong. `fix`: what to do. `why`: what is wrong, if the fix does not say
    so. `where`: the file, with the line, that contains the field, if any. `str` joins them into one sentence: `where:
    field=value: why: fix`.
    """

    def __init__(
        self, field: str | None, fix: str, *, value: object = ..., why: str = "", where: str | Path = ""
    ) -> None:
        super().__init__(field, fix)
        self.field, self.fix, self.value, self.why, self.where = field, fix, value, why, where

    def __str__(self) -> str:
        shown = None if self.value is ... else readable(self.value)
        subject = "=".join(part for part in (self.field, shown) if part is not None)
        return ": ".join(filter(None, (str(self.where), subject, self.why, self.fix)))


@contextmanager
def located(where: str | Path) -> Iterator[None]:
    """Add the file `where`, with the line, to a `UserError` about one of its fields."""
    try:
        yield
    except UserError as error:
        error.where = where
        raise


class Note(UserWarning):
    """Warning about a choice that changes results, and that was made without the user."""


def note(sentence: str) -> None:
    """Warn the user with a `Note`, once per process."""
    warnings.warn_explicit(sentence, Note, "compresskv", 0, registry=_TOLD)


_TOLD: dict[str | tuple[str, type[Warning], int], int] = {}


class PromptError(UserError):
    """One prompt cannot be answered: memory ran out, or numbers are not finite. Other prompts may still succeed."""


class NonFiniteError(PromptError):
    """The logits of a model are infinite or NaN, so the prompt has no answer."""


def part_name(part: object) -> str:
    """Return the name of a scorer or an allocator for errors: its own name, or the name of its class."""
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)


def readable(value: object, longest: int = SHOWN) -> str:
    """Format `value` as in a configuration, on one line of at most `longest` characters. A path is never cut."""
    if isinstance(value, Path):
        return str(value) if str(value).isprintable() else repr(str(value))
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        text = value if value and value.isprintable() else repr(value)
    elif isinstance(value, (list, tuple)):
        # Show only the items of a long sequence that fit.
        text = f"[{', '.join(readable(item) for item in value[:SHOWN])}]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{readable(k)}: {readable(v)}" for k, v in value.items()) + "}"
    else:
        try:
            text = repr(value)
        except ValueError:  # Python refuses to print integers of thousands of digits
            text = "a number of thousands of digits"
    return text if len(text) <= longest else text[: longest - 1] + "…"
