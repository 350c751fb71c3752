"""A setting's summary: the score with its interval, and what is needed to believe it."""

import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("torch", "transformers", "flash-attn", "tokenizers", "safetensors", "rouge-score", "hydra-core")


def mean_and_interval(scores: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, list[float]]:
    """The mean of the samples' scores and its 95 % bootstrap percentile interval."""
    values = np.asarray(scores, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return round(float(values.mean()), 2), [round(float(low), 2), round(float(high), 2)]


@cache
def environment() -> dict[str, Any]:
    """Where a run happened: commit, library versions, hardware."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
        "hardware": _hardware(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()}
    capabilities = torch.cpu.get_capabilities()
    found["cpu"] = capabilities.get("cpu_name", platform.processor())
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["cuda"] = torch.version.cuda
    return found
