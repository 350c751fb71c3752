"""What an experiment of `conf/experiment` sweeps over, without running it."""

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from compresskv.folders import CONF
from evals.compose import plain


def axes(*overrides: str) -> dict[str, list[str]]:
    """What the command line `-m <overrides>` sweeps over by itself: every swept setting with its values."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return _axes(overrides)


@cache
def sweep(*overrides: str, only: str | tuple[str, ...] = "") -> list[dict[str, Any]]:
    """The configurations of `-m <overrides>`, resolved; of the swept settings, those that start with one of `only`.

    Composed once in a process: leave them as they are.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        swept = {name: values for name, values in _axes(overrides).items() if name.startswith(only)}
        settings = [[f"{name}={value}" for value in values] for name, values in swept.items()]
        return [plain(compose("config", [*overrides, *given])) for given in itertools.product(*settings)]


def _axes(overrides: tuple[str, ...]) -> dict[str, list[str]]:
    config = compose("config", list(overrides), return_hydra_config=True)
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    swept: Mapping[str, Any] = OmegaConf.to_container(params, resolve=True)  # type: ignore[assignment]
    values: dict[str, list[str]] = {}
    for name, value in swept.items():
        override = OverridesParser.create().parse_override(f"{name}={value}")
        sweeping = override.is_sweep_override()
        values[name] = list(override.sweep_string_iterator()) if sweeping else [override.get_value_string()]
    return values
