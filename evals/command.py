"""The command line: `python run.py` in a checkout, `compresskv-bench` where the package is installed."""

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run the command line of this process. Signals are handled before anything large is imported."""
    signal.signal(signal.SIGINT, end_at_once)
    signal.signal(signal.SIGTERM, end_at_once)
    open_standard_descriptors()
    from evals.console import outputs_never_fail

    outputs_never_fail()
    start()


def end_at_once(number: int, frame: object) -> NoReturn:
    """While modules are imported nothing is open yet, and an exception might be swallowed: leave without one."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted: nothing was started yet\n")
    os._exit(128 + number)


def open_standard_descriptors() -> None:
    """Where the shell has closed 0, 1 or 2, as with `2>&-`, no file of a result may get that number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def start() -> None:
    """Compose the command line with Hydra and run it. Whatever refuses it, Hydra too, ends it with one sentence."""
    import hydra
    from hydra._internal.utils import get_args_parser

    from compresskv.folders import CONF
    from evals.compose import command_line, refuse_two_commands, refused_in_a_sentence
    from evals.console import one_sentence_endings

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own refusals come here as exceptions
    with one_sentence_endings():
        given = command_line(get_args_parser())
        refuse_two_commands(given)
        with refused_in_a_sentence(given.overrides):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()


def run(config: "DictConfig") -> None:
    """Run one composed configuration, or say what it would take."""
    from hydra.core.hydra_config import HydraConfig

    from evals.compose import experiment_of, plain, refuse_two_files, refused_in_a_sentence
    from evals.console import defects_end_here, one_sentence_endings, signals_as_interrupts
    from evals.job import jobs_from, take_plan

    with defects_end_here(), one_sentence_endings():
        with refused_in_a_sentence(HydraConfig.get().overrides.task):
            refuse_two_files(HydraConfig.get())
            composed = plain(config) | experiment_of(HydraConfig.get())
        planning, jobs = take_plan(composed), jobs_from([composed])
        # Imported here, so that --help and a mistake are answered without torch.
        if planning:
            from evals.running.plan import plan as carry_out
        else:
            from evals.running.sweep import run as carry_out

        signals_as_interrupts()
        carry_out(jobs)


if __name__ == "__main__":
    main()
