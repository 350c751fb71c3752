"""The terminal: where tables go, and how a command ends."""

import argparse
import io
import signal
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from compresskv.errors import Note, UserError

INTERRUPTED = "interrupted: finished samples are safe, the same command continues from there"

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's bidirectional classes of characters that change the order in which others are shown."""


def screen(width: int = 160) -> Console:
    """The terminal; elsewhere, a console of `width` columns: a file has no width, and cut columns help nobody."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def visible(text: str) -> str:
    """`text` with every control character as a picture of it: nothing in a name or an answer commands a terminal.

    Line breaks and tabs stay. Characters that reorder a line, such as U+202E, are written as their number.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    code, kind = ord(character), unicodedata.category(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if kind in ("Cc", "Cs") or unicodedata.bidirectional(character) in REORDERING:
        return f"<U+{code:04X}>"
    return character


def plain(text: str) -> Text:
    """Text for a table of the terminal: brackets in it are no markup, control characters no commands."""
    return Text(visible(text))


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are a `UserError`: one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise UserError(None, f"see {self.prog} --help", why=" ".join(message.split()))


class _Lossy(io.FileIO):
    """A descriptor that takes whatever is written: what a pipe without a reader or a full disk refuses is gone."""

    def write(self, content: Any) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        return memoryview(content).nbytes if written is None else written


def outputs_never_fail() -> None:
    """From now on printing raises nothing, whatever becomes of stdout and stderr: a finished sample matters more.

    Characters that have no bytes in the terminal's encoding are written as their number.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        buffer = io.BufferedWriter(_Lossy(descriptor, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))


def outputs_take_any_text() -> None:
    """From now on characters that have no bytes in the terminal's encoding are written as their number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def one_sentence_endings() -> Iterator[None]:
    """A user's mistake, or Ctrl-C, ends the process with one sentence on stderr and an exit code that is not 0.

    Several mistakes at once, in an `ExceptionGroup`, have a line each.

    A `Note` is one line on stderr.
    """
    warnings.formatwarning = _format_warning
    try:
        yield
    except UserError as error:
        sys.exit(visible(f"error: {error}"))
    except ExceptionGroup as several:
        if several.split(UserError)[1]:
            raise
        sys.exit("\n".join(visible(f"error: {error}") for error in several.exceptions))
    except KeyboardInterrupt:
        end_interrupted(INTERRUPTED)


@contextmanager
def defects_end_here() -> Iterator[None]:
    """A defect ends the process with its traceback, before Hydra, which runs us, has its say about the command line."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


_format_any_warning = warnings.formatwarning


def _format_warning(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> str:
    if issubclass(category, Note):
        return f"note: {visible(str(message))}\n"
    return _format_any_warning(message, category, *where, **options)


class _Signals:
    received = 0  # the number of the last one
    held = False


def end_interrupted(sentence: str) -> NoReturn:
    """End with the code of a process that the signal had ended, as shells give it: 130 for Ctrl-C, 143 for SIGTERM."""
    print(sentence, file=sys.stderr)
    sys.exit(128 + (_Signals.received or signal.SIGINT))


def signals_as_interrupts() -> None:
    """From now on Ctrl-C, and what a cluster or a closed terminal sends, raises KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a SLURM task want it
            signal.signal(number, _interrupt)


def check_interrupts() -> None:
    """Raise KeyboardInterrupt if a signal came whose exception was swallowed, as by a finaliser or a callback."""
    if _Signals.received:
        raise KeyboardInterrupt


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A signal that comes inside the block raises KeyboardInterrupt at its end, not in the midst of it."""
    _Signals.held = True
    try:
        yield
    finally:
        _Signals.held = False
    check_interrupts()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _Signals.received = number
    if not _Signals.held:
        raise KeyboardInterrupt
