"""Compose configurations and jobs, each once for all tests."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from evals import compose
from evals.job import Job

_composed = cache(compose.composed)


def composed(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    """Return a copy of the configuration of these overrides, which a test may change.

    With `config_dir`, whose files may change, it is always composed again.
    """
    if config_dir:
        return compose.composed(*overrides, config_dir=config_dir)
    return copy.deepcopy(_composed(*overrides))


def job(*overrides: str, config_dir: Path | None = None) -> Job:
    """Return the job of these overrides."""
    return compose.job_from(composed(*overrides, config_dir=config_dir))
