"""`python -m evals <command>`: all commands except running settings, which is `python run.py`.

`--results <folder>` sets the results tree of every command that reads or writes one (default: results).
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from compresskv.errors import UserError
from evals.console import one_sentence_endings, outputs_never_fail, outputs_take_any_text

COMMANDS = {
    "report": ("evals.report.__main__", "write an experiment's tables and figures, or all results as one HTML page"),
    "results": ("evals.results.__main__", "list, show, verify, compare or certify results, or send them to W&B"),
    "score": ("evals.longbench.score", "score LongBench predictions in the official format"),
    "ruler": ("evals.ruler.__main__", "print RULER's samples for a model's tokenizer"),
    "lm-eval": ("evals.lm_eval.__main__", "run lm-evaluation-harness with a compressed cache"),
    "conformance": ("evals.conformance.__main__", "check a method against the rules for all methods"),
    "calibrate": ("evals.command", "calibrate a model: python run.py eval=calibrate"),
    "audit": ("evals.audit.__main__", "measure the effect of each quirk of the released code"),
    "reference": ("evals.reference.__main__", "run the sweeps of the reference run"),
}
"""Commands by name: the module whose `main` runs the command, and its description."""

HANDLE_PIPES = ("report", "results", "score", "ruler")
"""Commands that end when the reader of their output closes the pipe; all other commands continue."""

REFUSED = 2
"""Exit code of a command that rejects its command line."""


def start(*before: str) -> NoReturn:
    """Run the command line of this process, with the words `before` put in front of it."""
    words = [*before, *sys.argv[1:]]
    if words[:1] and words[0] in HANDLE_PIPES:
        outputs_take_any_text()
    else:
        outputs_never_fail()
    sys.exit(main(words))


def main(words: Sequence[str]) -> int:
    """Run one command and return its exit code, which is `REFUSED` if it ended with an error message on stderr."""
    name, arguments = (words[0] if words else ""), list(words[1:])
    if name in ("", "-h", "--help"):
        print(f"usage: python -m evals <command> [--help] …\n\n{overview()}")
        return 0 if name else REFUSED
    if {"-h", "--help"} & set(arguments) and (about := _about(name, arguments)):
        print(about)
        return 0
    try:
        with one_sentence_endings():
            return command(name)(_with_results(name, arguments)) or 0
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return REFUSED
        return int(ending.code or 0)


def _about(name: str, arguments: Sequence[str]) -> str | None:
    """Return the help of commands that take overrides like `run.py`; None for commands that print their own help."""
    if name == "audit":
        return import_module(COMMANDS[name][0]).__doc__
    if name == "results" and "push-wandb" in arguments:
        return import_module("evals.loggers.push").__doc__
    return None


def overview() -> str:
    """Return one line per command."""
    return "\n".join(f"  {name:<12} {about}" for name, (_, about) in COMMANDS.items())


def command(name: str) -> Callable[[list[str]], int | None]:
    """Return the function that runs a command. Raises `UserError` for an unknown command."""
    if name not in COMMANDS:
        raise UserError("command", f"choose one of {', '.join(COMMANDS)}", value=name)
    return _calibrate if name == "calibrate" else import_module(COMMANDS[name][0]).main


def _calibrate(arguments: list[str]) -> None:
    from evals.command import start

    sys.argv = ["run.py", "eval=calibrate", *arguments]
    start()


def _with_results(name: str, arguments: list[str]) -> list[str]:
    """Return the arguments with `--results` converted to the form that the command takes."""
    others, folder = list(arguments), None
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option == "--results" and (equals or arguments[place + 1 :]):
            folder = value if equals else arguments[place + 1]
            del others[place : place + (1 if equals else 2)]
            break
    if folder is None:
        return arguments
    if name == "results" and others[:1] == ["push-wandb"]:
        return [*others, folder]
    if name in ("audit", "calibrate"):
        from evals.compose import quoted

        return [*others, f"paths.results={quoted(folder)}"]
    return arguments


if __name__ == "__main__":
    start()
