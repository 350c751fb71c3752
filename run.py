"""CompressKV-Bench: `python run.py method=compresskv budget=256`; `--help` lists everything that can be set."""

import contextlib
import os
import signal
from typing import NoReturn


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, end_at_once)
    signal.signal(signal.SIGTERM, end_at_once)
    open_standard_descriptors()

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from evals.compose import command_line, plain, refuse_two_commands, refuse_two_files, refused_in_a_sentence
from evals.console import defects_end_here, one_sentence_endings, outputs_never_fail, signals_as_interrupts
from evals.job import job_from, take_plan


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    with defects_end_here(), one_sentence_endings():
        with refused_in_a_sentence(HydraConfig.get().overrides.task):
            refuse_two_files(HydraConfig.get())
            composed = plain(config)
        planning, jobs = take_plan(composed), [job_from(composed)]
        # Imported here, so that --help and a typo are answered without torch.
        if planning:
            from evals.running.plan import plan as run
        else:
            from evals.running.sweep import run

        signals_as_interrupts()
        run(jobs)


def start() -> None:
    """Run the command line; whatever refuses it, Hydra too, ends it with one sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own refusals come here as exceptions
    with one_sentence_endings():
        given = command_line(get_args_parser())
        refuse_two_commands(given)
        with refused_in_a_sentence(given.overrides):
            main()


if __name__ == "__main__":
    outputs_never_fail()
    start()
