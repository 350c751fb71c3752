"""`python -m evals <command>`: all commands except running settings, which is `python run.py`.

`--results <folder>` sets the results tree of every command that reads or writes one (default: results).
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from compresskv.errors import UserError
from evals.console import one_sentence_endings, outputs_never_fail, outputs_take_any_text, visible

COMMANDS = {
    "report": (
        "evals.report.__main__:main",
        "write an experiment's tables and figures, or an HTML page of all results",
    ),
    "results": ("evals.report.results:main", "list, show, verify, compare or certify results"),
    "push-wandb": ("evals.loggers.push:push", "send finished results to Weights & Biases"),
    "score": ("evals.longbench.score:main", "score LongBench predictions in the official format"),
    "ruler": ("evals.ruler.__main__:main", "print RULER's samples for a model's tokenizer"),
    "lm-eval": ("evals.lm_eval.__main__:main", "run lm-evaluation-harness with a compressed cache"),
    "conformance": ("evals.conformance.__main__:main", "check a method against the rules for all methods"),
    "calibrate": ("evals.command:calibrate", "calibrate a model: python run.py eval=calibrate"),
    "audit": ("evals.audit.__main__:main", "measure the effect of each quirk of the released code"),
    "reference": ("evals.reference.__main__:main", "run the sweeps of the reference run"),
}
"""Commands by name: the function that runs the command with its arguments, and a description."""

HANDLE_PIPES = ("report", "results", "score", "ruler")
"""Commands that end when the reader of their output closes the pipe; all other commands continue."""

TAKE_OVERRIDES = ("push-wandb", "calibrate", "audit")
"""Commands whose arguments are overrides, as for run.py. These commands do not parse options."""

REFUSED = 2
"""Exit code of a command that rejects its command line."""


def start(*before: str) -> NoReturn:
    """Run the words `before`, followed by the command line of this process."""
    words = [*before, *sys.argv[1:]]
    if words[:1] and words[0] in HANDLE_PIPES:
        outputs_take_any_text()
    else:
        outputs_never_fail()
    sys.exit(main(words))


def main(words: Sequence[str]) -> int:
    """Run one command and return its exit code, which is `REFUSED` if it ended with an error message on stderr."""
    words = words[1:] if tuple(words[:2]) == ("results", "push-wandb") else words
    name, arguments = (words[0] if words else ""), list(words[1:])
    if name in ("", "-h", "--help"):
        print(f"usage: python -m evals <command> [--help] …\n\n{overview()}")
        return 0 if name else REFUSED
    try:
        with one_sentence_endings():
            run = command(name)
            if name in TAKE_OVERRIDES:
                if {"-h", "--help"} & set(arguments) and name != "calibrate":  # which has the help of run.py
                    print(sys.modules[run.__module__].__doc__)
                    return 0
                arguments = _as_overrides(arguments)
            code = run(arguments) or 0
            if sys.stdout:  # None if the shell closed it
                sys.stdout.flush()
            return code
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return REFUSED
        return int(ending.code or 0)
    except OSError as error:
        if name not in HANDLE_PIPES or error.errno is None or error.filename is not None:  # not of an output
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Python from flushing the rest at exit
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has closed the pipe
            return 141
        print(visible(f"error: this output cannot be written: {error.strerror}"), file=sys.stderr)
        return REFUSED


def overview() -> str:
    """Return one line per command."""
    return "\n".join(f"  {name:<12} {about}" for name, (_, about) in COMMANDS.items())


def command(name: str) -> Callable[[list[str]], int | None]:
    """Return the function that runs a command. Raises `UserError` for an unknown command."""
    if name not in COMMANDS:
        raise UserError("command", f"choose one of {', '.join(COMMANDS)}", value=name)
    return resolve_name(COMMANDS[name][0])


def _as_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--results <folder>` and `--results=<folder>` as the override `paths.results=`."""
    rest, found = iter(arguments), []
    for word in rest:
        option, equals, folder = word.partition("=")
        folder = folder if equals else next(rest, "") if option == "--results" else ""
        found.append(f"paths.results={quoted(folder)}" if option == "--results" and folder else word)
    return found


def quoted(path: str | Path) -> str:
    """Quote a path with any characters for Hydra's grammar, in which only backslashes before a quote are special."""
    if re.fullmatch(r"[\w/.:-]+", str(path), re.ASCII):
        return str(path)
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", str(path)) + "'"
