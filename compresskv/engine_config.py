"""How the engine runs a model; these settings do not change results."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the engine.

    `graph`: "auto" replays decode steps as CUDA graphs if the device and the cache allow it (`engine.graph`); "off"
    never does.
    """

    graph: Literal["auto", "off"] = "off"
