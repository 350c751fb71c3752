"""What the user is told: exceptions that are a message rather than a defect, and notes."""

import warnings


class UserError(ValueError):
    """A mistake in what the user asked for, or something the machine refuses.

    The message is one sentence that names the field, the value and the fix; `run.py` prints it without a traceback.
    """


class Note(UserWarning):
    """A choice that the user did not make and that results depend on."""


def note(sentence: str) -> None:
    """Tell the user of such a choice, once in a process, wherever it is made."""
    warnings.warn_explicit(sentence, Note, "compresskv", 0, registry=_TOLD)


_TOLD: dict[str | tuple[str, type[Warning], int], int] = {}


class PromptError(UserError):
    """One prompt has no answer, though others may have: memory ran out, or numbers are not finite."""


class NonFiniteError(PromptError):
    """A model computed logits that are infinite or no numbers, so there is no answer to give."""


def part_name(part: object) -> str:
    """What an error calls a scorer or an allocator: its name, or that of its class."""
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
