"""Loading the models of sweeps: anew for each sweep, or, in a process that runs many, the last one only once."""

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
    """From now on this process keeps the last model for sweeps to come: their command lines come from one sweep."""
    _Last.kept = True


def load(config: ModelConfig) -> LoadedModel:
    """The model of a configuration. Raises `UserError` where it cannot be loaded or served."""
    import torch  # here, so that a process that waits for its first command line is there at once

    from compresskv import models

    if not _Last.kept:
        return models.load(config)
    if _Last.model is None or _Last.config != config:
        _Last.model = None  # frees its memory before the next one takes some
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _Last.model, _Last.config = models.load(config), config
    return _Last.model
