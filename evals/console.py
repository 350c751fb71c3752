"""Terminal output of commands, and how commands end on errors and signals."""

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

INTERRUPTED = "interrupted: finished samples are saved; run the same command again to continue"

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's bidirectional classes of characters that change the displayed order of other characters."""


def screen(width: int = 160) -> Console:
    """Return a console for the terminal, or one of `width` columns if stdout is a file, so that no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def visible(text: str) -> str:
    """Return `text` with symbols for control characters, except line breaks and tabs, and codes for characters that
    reorder text."""
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
    """Return text for a terminal table: brackets are not markup, and control characters have no effect."""
    return Text(visible(text))


class Arguments(argparse.ArgumentParser):
    """Argument parser that raises `UserError` for a mistake: the message is one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(None, f"see {self.prog} --help", why=" ".join(message.split()))


class _Lossy(io.FileIO):
    """File that discards what cannot be written, for example to a pipe without a reader or a full disk."""

    def write(self, content: Any) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        return memoryview(content).nbytes if written is None else written


def outputs_never_fail() -> None:
    """Make printing to stdout and stderr never raise; characters that the encoding lacks are written as escapes."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        buffer = io.BufferedWriter(_Lossy(descriptor, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))


def outputs_take_any_text() -> None:
    """Make stdout and stderr write characters that the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def one_sentence_endings() -> Iterator[None]:
    """End the process on a `UserError` or Ctrl-C with one sentence on stderr and a nonzero exit code.

    An `ExceptionGroup` of several `UserError`s prints one line for each. A `Note` is printed as one line on stderr.
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
    """End the process on a defect with its traceback, before Hydra catches it and prints its own message."""
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
    received = 0  # number of the last signal
    held = False


def end_interrupted(sentence: str) -> NoReturn:
    """Exit with the code that shells use for a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM."""
    print(sentence, file=sys.stderr)
    sys.exit(128 + (_Signals.received or signal.SIGINT))


def signals_as_interrupts() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt: Ctrl-C, a cluster's signal, and a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` and SLURM tasks ignore some signals
            signal.signal(number, _interrupt)


def check_interrupts() -> None:
    """Raise KeyboardInterrupt if a signal was received whose exception was swallowed, for example by a finaliser."""
    if _Signals.received:
        raise KeyboardInterrupt


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay the KeyboardInterrupt of a signal that is received inside the block until the end of the block."""
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
