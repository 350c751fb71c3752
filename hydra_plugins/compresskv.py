"""The launcher behind `python run.py -m …`: all jobs of a sweep run in one process and share their prefills."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class SharedPrefillLauncher(Launcher):
    """Composes the sweep's jobs and hands them to `run.run` together.

    `outcome`: a file that gets what became of each job. Settings of other launchers, which an experiment may bring
    along for use on a cluster, are of no use here.
    """

    def __init__(self, outcome: str | None = None, **_: Any) -> None:
        self.outcome = Path(outcome) if outcome else None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.task_function = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        composed = [self.compose(overrides) for overrides in job_overrides]
        run = self.task_function.__globals__["run"]
        run(composed, self.outcome)
        return [done(config, list(o)) for config, o in zip(composed, job_overrides, strict=True)]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job of the sweep."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config


def done(config: DictConfig, overrides: list[str]) -> JobReturn:
    """What Hydra wants back: a job's result is in its folder."""
    result = JobReturn(cfg=config, overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = None
    return result


ConfigStore.instance().store(
    group="hydra/launcher",
    name="shared_prefill",
    node={"_target_": "hydra_plugins.compresskv.SharedPrefillLauncher", "outcome": None},
    provider="compresskv",
)
