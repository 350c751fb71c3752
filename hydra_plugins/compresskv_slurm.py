"""The launcher behind `python run.py -m hydra/launcher=slurm …`: the sweep's groups as array tasks of a cluster."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.compresskv import SharedPrefillLauncher, done

OWN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.mode")
"""Hydra's own settings that shape this sweep, but not those that its array tasks run."""


class SlurmLauncher(SharedPrefillLauncher):
    """Submits the composed jobs and follows them; the settings are those of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Imported here: Hydra imports this file at every start.
        from compresskv.errors import UserError
        from evals.slurm import driver

        composed = [self.compose(overrides) for overrides in job_overrides]
        plain = [OmegaConf.to_container(config, resolve=True) for config in composed]
        settings = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in self.settings.items()}
        try:
            driver.launch(settings, self._command(), plain, job_overrides)
        except UserError as error:
            sys.exit(f"error: {error}")
        return [done(config, list(o)) for config, o in zip(composed, job_overrides, strict=True)]

    def _command(self) -> list[str]:
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
