"""Configurations and jobs, each composed once for all tests."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from evals import compose
from evals.job import Job

_composed = cache(compose.composed)


def composed(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    """The configuration of these overrides, for a test to change; with a folder, whose files may change, made anew."""
    if config_dir:
        return compose.composed(*overrides, config_dir=config_dir)
    return copy.deepcopy(_composed(*overrides))


def job(*overrides: str, config_dir: Path | None = None) -> Job:
    """The job of these overrides."""
    return compose.job_from(composed(*overrides, config_dir=config_dir))
