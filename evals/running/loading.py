"""Load the models of sweeps. A process that runs many sweeps can keep the last model between them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compresskv.models import LoadedModel, ModelConfig


class _Last:
    kept = False
    config: ModelConfig | None = None
    model: LoadedModel | None = None


def keep_last_model() -> None:
    """Keep the last model of this process for later sweeps. Use this if their command lines belong to one sweep."""
    _Last.kept = True


def load(config: ModelConfig) -> LoadedModel:
    """Load the model of a configuration. Raises `UserError` if it cannot be loaded or is not supported."""
    import torch  # imported here, so that a process that waits for its first command line starts quickly

    from compresskv import models

    if not _Last.kept:
        return models.load(config)
    if _Last.model is None or _Last.config != config:
        _Last.model = None  # free its memory before loading the next model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _Last.model, _Last.config = models.load(config), config
    return _Last.model
