"""The launcher behind `python run.py -m …`: the jobs of a sweep share their prefills, on one device or on several."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

OWN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.mode")
"""Hydra's own settings that shape this sweep, but not those that its groups run."""


class SharedPrefillLauncher(Launcher):
    """Composes the sweep's jobs and hands them to `run.run` together, or by groups to processes on several devices.

    The settings are those of conf/hydra/launcher/shared_prefill.yaml. Those of other launchers, which an experiment may
    bring along for use on a cluster, are of no use here.
    """

    def __init__(self, devices: Any = None, outcome: str | None = None, **_: Any) -> None:
        self.devices = devices
        self.outcome = Path(outcome) if outcome else None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.task_function = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Imported here, like all of the harness: Hydra imports this file at every start.
        from compresskv.errors import UserError

        composed = [self.compose(overrides) for overrides in job_overrides]
        try:
            self.run(composed, job_overrides)
        except UserError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted: finished samples are safe, the same command goes on from there")
        return [done(config, list(o)) for config, o in zip(composed, job_overrides, strict=True)]

    def run(self, composed: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> None:
        """Run the jobs; `overrides` are those that each was composed from."""
        from evals import devices

        if not devices.launch(self.devices, self.command(), plain(composed), overrides, self.outcome):
            self.task_function.__globals__["run"](composed, self.outcome)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job of the sweep."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    def command(self) -> list[str]:
        """The ordinary command line of a sweep, up to what tells one group from another."""
        script = Path(self.task_function.__globals__["__file__"]).resolve()
        command = [sys.executable, str(script), "-m"]
        if (name := self.config.hydra.job.config_name) != "config":
            command.append(f"--config-name={name}")
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                command.append(f"--config-dir={source.path}")
        kept = [o for o in self.config.hydra.overrides.hydra if not o.lstrip("+~").startswith(OWN)]
        return [*command, "hydra/launcher=shared_prefill", *kept]


def plain(configs: Sequence[DictConfig]) -> list[Any]:
    """The configurations, resolved, as dictionaries."""
    return [OmegaConf.to_container(config, resolve=True) for config in configs]


def done(config: DictConfig, overrides: list[str]) -> JobReturn:
    """What Hydra wants back: a job's result is in its folder."""
    result = JobReturn(cfg=config, overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = None
    return result
