"""Hydra plugins for `python run.py -m …`: the jobs of a sweep share their prefills, on one device or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper without its multirun.yaml, which could not be written to a tree that is read-only or full.

    Each setting's folder has its whole configuration. Settings are not composed twice: the launchers compose all
    settings before they start the first one.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def check(self) -> None:
        """Raise `UserError` if `params` is not a mapping of settings to their values."""
        from compresskv.checking import checked_value

        params = OmegaConf.to_container(self.params) if isinstance(self.params, DictConfig) else self.params
        checked_value("hydra.sweeper.params", Mapping[str, bool | int | float | str | None] | None, params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        # Import here, as in all plugins, because Hydra imports this file at every start.
        from evals.compose import expansion
        from evals.console import one_sentence_endings

        assert self.launcher is not None
        assert self.hydra_context is not None
        with one_sentence_endings():
            self.check()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return self.launcher.launch(expansion([*self._parse_config(), *arguments], parser), initial_job_idx=0)


class SharedPrefillLauncher(Launcher):
    """Composes the sweep's jobs and runs them in this process, or in one process per device.

    The settings are in conf/hydra/launcher/shared_prefill.yaml. The settings of other launchers, which an experiment
    may contain for use on a cluster, are accepted and ignored.
    """

    def __init__(self, devices: Any = None, **others: Any) -> None:
        self.devices, self.others = devices, others

    def check(self) -> None:
        """Raise `UserError` for an unknown setting."""
        from compresskv.checking import refuse_unknown
        from evals.launch.slurm.config import SlurmConfig

        refuse_unknown("hydra.launcher", self.others, ["devices", *(f.name for f in fields(SlurmConfig))])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Import here, as in all plugins, because Hydra imports this file at every start.
        from compresskv.errors import UserError
        from evals.compose import action, resolved, take_action
        from evals.console import defects_end_here, one_sentence_endings, signals_as_interrupts
        from evals.hydra_errors import refused_in_a_sentence
        from evals.launch.groups import sweep_jobs

        with defects_end_here(), one_sentence_endings():
            self.check()
            composed = []
            for overrides in job_overrides:
                with refused_in_a_sentence(overrides):
                    composed.append(self.compose(overrides))
            with refused_in_a_sentence():
                configs = [resolved(config) for config in composed]
            chosen = take_action(*configs)
            jobs = sweep_jobs(configs)  # checked before the runners import torch
            run = self.runner(jobs) if chosen == "run" else action(chosen)
            signals_as_interrupts()
            failure = None
            try:
                run(jobs)
            except UserError as error:
                failure = error
            if chosen == "run":
                self.write_artefacts(jobs[0].results)  # of the settings that finished
            if failure:
                raise failure
        return [finished(config, overrides) for config, overrides in zip(composed, job_overrides, strict=True)]

    def write_artefacts(self, results: Path) -> None:
        """Write the tables and figures of the experiment, if any."""
        from evals.report.artefacts import write_after_run

        if experiment := self.config.hydra.runtime.choices.get("experiment"):
            write_after_run(experiment, results)

    def runner(self, jobs: Sequence[Any]) -> Callable[[Sequence[Any]], None]:
        """Return the function that runs the jobs."""
        from evals.launch import devices

        return devices.runner(self.devices, jobs)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of one job of the sweep."""
        from evals.compose import without_hydra

        return without_hydra(self.context.config_loader.load_sweep_config(self.config, list(overrides)))


def finished(config: DictConfig, overrides: Sequence[str]) -> JobReturn:
    """Return the result that Hydra expects. The actual results of a job are in its folder."""
    result = JobReturn(cfg=config, overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = None
    return result
