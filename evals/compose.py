"""Compose the configuration as `run.py` does: for the audit, benchmarks, notebooks and tests."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from compresskv.model_config import name_of
from evals.job import Job, job_from

CONF = Path(__file__).resolve().parents[1] / "conf"


# `model.path=<id or directory>` names the model after it, unless `model.name` says otherwise.
OmegaConf.register_new_resolver("name_of", lambda path, name: name if path is None else name_of(path), replace=True)
OmegaConf.register_new_resolver("if_null", lambda value, otherwise: otherwise if value is None else None, replace=True)


@cache
def scratch() -> TemporaryDirectory[str]:
    """A folder that vanishes with this process."""
    return TemporaryDirectory(prefix="compresskv-")


# Hydra writes down every sweep, a plan of one too, which is to leave nothing behind.
OmegaConf.register_new_resolver("sweep_folder", lambda results, plan: scratch().name if plan else results, replace=True)


def composed(*overrides: str) -> dict[str, Any]:
    """The configuration of a command line with these overrides, resolved, as plain data."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("config", list(overrides)))


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration, resolved, as plain data."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def job(*overrides: str) -> Job:
    """The job of a command line with these overrides. Raises `UserError` for values that cannot be."""
    return job_from(composed(*overrides))
