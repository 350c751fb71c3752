"""Behind `python run.py -m …`: the jobs of a sweep share their prefills, on one device or on several."""

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

LAUNCHING = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.mode")
"""Hydra's own settings that shape this sweep, but not those that its groups run."""

CHECKOUT = Path(__file__).resolve().parents[1]
INSTALLED = Path(sysconfig.get_path("scripts")) / "compresskv-bench"
SCRIPT = CHECKOUT / "run.py" if (CHECKOUT / "pyproject.toml").is_file() else INSTALLED
"""What a user runs; processes of other devices and of SLURM run it, too."""


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper without its multirun.yaml, for which a tree that is read-only or full has no place.

    Each setting's folder has its whole configuration. Nor are the settings composed twice: the launchers compose all of
    them before they start the first.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def check(self) -> None:
        """Raise `UserError` for `params` that are no mapping of settings and their values."""
        from compresskv.checking import checked_value

        params = OmegaConf.to_container(self.params) if isinstance(self.params, DictConfig) else self.params
        checked_value("hydra.sweeper.params", Mapping[str, bool | int | float | str | None] | None, params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        # Imported here, like all of the harness: Hydra imports this file at every start.
        from evals.console import one_sentence_endings

        assert self.launcher is not None
        assert self.hydra_context is not None
        with one_sentence_endings():
            self.check()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        return self.launcher.launch(jobs, initial_job_idx=0)


class SharedPrefillLauncher(Launcher):
    """Composes the sweep's jobs and hands them to an executor: this process, or one process per device.

    The settings are those of conf/hydra/launcher/shared_prefill.yaml. Those of other launchers, which an experiment may
    bring along for use on a cluster, are of no use here.
    """

    def __init__(self, devices: Any = None, outcome: Any = None, **others: Any) -> None:
        self.devices, self.outcome, self.others = devices, outcome, others

    def check(self) -> None:
        """Raise `UserError` for a setting that is none, and for a value that cannot be."""
        from compresskv.checking import PathText, checked_value, refuse_unknown
        from evals.launch.slurm.config import SlurmConfig

        refuse_unknown("hydra.launcher", self.others, ["devices", "outcome", *(f.name for f in fields(SlurmConfig))])
        checked_value("hydra.launcher.outcome", PathText | None, self.outcome)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Imported here, like all of the harness: Hydra imports this file at every start.
        from compresskv.errors import UserError
        from evals.compose import plain, refused_in_a_sentence
        from evals.console import defects_end_here, one_sentence_endings, signals_as_interrupts
        from evals.job import take_plan
        from evals.launch.executor import Plan, Sweep

        with defects_end_here(), one_sentence_endings():
            self.check()
            composed = []
            for overrides in job_overrides:
                with refused_in_a_sentence(overrides):
                    composed.append(self.compose(overrides))
            with refused_in_a_sentence():
                configs = [plain(config) for config in composed]
            planning = take_plan(*configs)
            outcome = Path(self.outcome) if self.outcome else None
            sweep = Sweep(configs, job_overrides, self.command(), outcome)
            _ = sweep.jobs  # checked before the executors import torch
            executor = Plan() if planning else self.executor(sweep)
            signals_as_interrupts()
            try:
                executor.run(sweep)
            except UserError:
                if not planning:
                    self.write_artefacts(sweep)  # of what did finish
                raise
            if not planning:
                self.write_artefacts(sweep)
        return [finished(config, overrides) for config, overrides in zip(composed, job_overrides, strict=True)]

    def write_artefacts(self, sweep: Any) -> None:
        """The tables and figures of an experiment that has some; a part of a sweep, with an `outcome`, has none."""
        from evals.report.end import write_artefacts

        experiment = self.config.hydra.runtime.choices.get("experiment")
        if experiment and not self.outcome:
            write_artefacts(experiment, sweep.jobs[0].results)

    def executor(self, sweep: Any) -> Any:
        """What runs the sweep."""
        from evals.launch import devices

        return devices.executor(self.devices, sweep)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job of the sweep."""
        from evals.compose import experiment_of, refuse_two_files

        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        refuse_two_files(config.hydra)
        with open_dict(config):
            config.update(experiment_of(config.hydra))
            del config["hydra"]
        return config

    def command(self) -> list[str]:
        """The ordinary command line of a sweep, up to what tells one group from another."""
        command = [sys.executable, str(SCRIPT), "-m"]
        if (name := self.config.hydra.job.config_name) != "config":
            command.append(f"--config-name={name}")
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                command.append(f"--config-dir={source.path}")
        kept = [o for o in self.config.hydra.overrides.hydra if not o.lstrip("+~").startswith(LAUNCHING)]
        return [*command, "hydra/launcher=shared_prefill", *kept]


def finished(config: DictConfig, overrides: Sequence[str]) -> JobReturn:
    """What Hydra wants back: a job's result is in its folder."""
    result = JobReturn(cfg=config, overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = None
    return result
