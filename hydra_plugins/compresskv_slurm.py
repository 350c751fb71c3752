"""The launcher for `python run.py -m hydra/launcher=slurm …`: the sweep's groups run as array tasks of a cluster."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra_plugins.compresskv import SharedPrefillLauncher


class SlurmLauncher(SharedPrefillLauncher):
    """Submits the composed jobs and follows them. The settings are in conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def check(self) -> None:
        from compresskv.checking import checked
        from evals.launch.slurm.config import SlurmConfig

        checked("hydra.launcher", SlurmConfig, self.settings)

    def runner(self, jobs: Sequence[Any]) -> Callable[[Sequence[Any]], None]:
        from evals.launch.slurm.driver import Slurm

        return Slurm(self.settings)
