"""Where results come from: commit, library versions, hardware."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "flash-attn", "tokenizers", "safetensors", "rouge-score", "hydra-core")


@cache
def environment() -> dict[str, Any]:
    """Where a run happened: commit, library versions, hardware."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: installed for name in LIBRARIES if (installed := _version(name))},
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
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    import torch

    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()}
    capabilities = torch.cpu.get_capabilities()
    hardware["cpu"] = capabilities.get("cpu_name", platform.processor())
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        hardware["cuda"] = torch.version.cuda
    return hardware
