"""The launcher behind `python run.py -m hydra/launcher=slurm …`: the sweep's groups as array tasks of a cluster."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from hydra_plugins.compresskv import SharedPrefillLauncher, plain


class SlurmLauncher(SharedPrefillLauncher):
    """Submits the composed jobs and follows them; the settings are those of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def run(self, composed: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> None:
        from evals.slurm import driver

        driver.launch(self.settings, self.command(), plain(composed), overrides)
