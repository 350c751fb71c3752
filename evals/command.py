"""The command line: `python run.py` in a checkout, `compresskv-bench` where the package is installed."""

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from omegaconf import DictConfig


def main() -> None:
    """Run the command line of this process. Install signal handlers before importing large modules."""
    signal.signal(signal.SIGINT, end_at_once)
    signal.signal(signal.SIGTERM, end_at_once)
    open_standard_descriptors()
    from evals.console import outputs_never_fail

    outputs_never_fail()
    start()


def end_at_once(number: int, frame: object) -> NoReturn:
    """Exit without raising, since an exception could be swallowed during imports. No file is open at this point."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted: nothing was started yet\n")
    os._exit(128 + number)


def open_standard_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if the shell closed them, as with `2>&-`, so that no results file gets the number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def start() -> None:
    """Compose the command line with Hydra and run it. Any error in it, also from Hydra, ends with one sentence."""
    import hydra
    from hydra._internal.utils import get_args_parser

    import evals.compose  # noqa: F401  (registers the resolvers that the configuration uses)
    from compresskv.folders import CONF
    from evals.console import one_sentence_endings
    from evals.hydra_errors import refused_in_a_sentence

    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of exiting
    with one_sentence_endings():
        given = _command_line(get_args_parser())
        _refuse_two_commands(given)
        sys.argv[1:] = [_swept(word, given) for word in sys.argv[1:]]
        with refused_in_a_sentence(given.overrides):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()


def calibrate(arguments: list[str]) -> None:
    """Run `python run.py eval=calibrate` with further arguments."""
    sys.argv = ["run.py", "eval=calibrate", *arguments]
    start()


def _command_line(parser: "ArgumentParser") -> "Namespace":
    """Parse the command line with Hydra's `parser`. Raises `UserError` for an unknown flag or a missing value."""

    from compresskv.errors import UserError, readable

    def refuse(message: str) -> NoReturn:
        raise UserError("command line", "see python run.py --help", why=readable(" ".join(message.split()), 400))

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args()


def _refuse_two_commands(given: "Namespace") -> None:
    """Raise `UserError` if a parsed command line asks for two actions, such as -m and --cfg."""
    from compresskv.errors import UserError

    actions = ("multirun", "cfg", "info", "shell_completion", "run")
    names = [f"--{name.replace('_', '-')}" for name in actions if getattr(given, name)]
    if given.resolve and not (given.cfg or given.help):
        raise UserError("--resolve", "leave it out, or add --cfg or --help", why="it goes with --cfg or --help")
    if len(names) > 1 and not (given.help or given.hydra_help):
        fix = ", or add +plan=true to see what a sweep needs" if names[0] == "--multirun" else ""
        raise UserError(f"{names[0]} and {names[1]}", f"leave one out{fix}", why="give only one of these")


def _swept(word: str, given: "Namespace") -> str:
    """Return `for.<method>.<setting>=<value>` as a sweep over one value, so that Hydra passes it to the sweeper."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from compresskv.errors import UserError

    name, equals, value = word.partition("=")
    if word not in given.overrides or not name.startswith("for.") or not equals:
        return word
    if not given.multirun:
        raise UserError(name, "add -m", value=value, why="only sweeps accept settings for single methods")
    parsed = OverridesParser.create().parse_override(word)
    return word if parsed.is_sweep_override() else f"{name}=choice({value})"


def run(config: "DictConfig") -> None:
    """Run one composed configuration, or carry out another action for it, such as `+plan=true`."""
    from hydra.core.hydra_config import HydraConfig

    from evals.compose import action, experiment_of, jobs_from, resolved, take_action
    from evals.console import defects_end_here, one_sentence_endings, signals_as_interrupts
    from evals.hydra_errors import refuse_two_files, refused_in_a_sentence

    with defects_end_here(), one_sentence_endings():
        with refused_in_a_sentence(HydraConfig.get().overrides.task):
            refuse_two_files(HydraConfig.get())
            composed = resolved(config) | experiment_of(HydraConfig.get())
        chosen, jobs = take_action(composed), jobs_from([composed])
        carry_out = action(chosen)
        signals_as_interrupts()
        carry_out(jobs)


if __name__ == "__main__":
    main()
