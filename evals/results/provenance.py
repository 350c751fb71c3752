"""Describe the environment of results: commit, library versions, hardware."""

import hashlib
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compresskv.flash import flash_version
from evals.results.schema import Environment, Line, misfit

CHECKOUT = Path(__file__).resolve().parents[2]

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "rouge-score", "hydra-core")


@cache
def environment() -> dict[str, Any]:
    """Return the environment of this process: commit, library versions, hardware, and `key`, 8 digits of their hash."""
    versions = {**{name: _version(name) for name in LIBRARIES}, "flash-attn": flash_version()}
    about = {
        "version": _version("compresskv-bench"),
        **_revision(),
        "python": platform.python_version(),
        "versions": {name: installed for name, installed in versions.items() if installed},
        "hardware": _hardware(),
    }
    return {"key": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8], **about}


def described(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """Return the environments that are described in full in any of these lines, by key."""
    named = (_environment(line) for line in lines)
    return {str(each.get("key")): each for each in named if isinstance(each, dict)}


def environments(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all environments of a summary, starting with the environment of most samples."""
    first = summary.get("environment")
    if not isinstance(first, dict) or not first:
        return []
    others = first.get("others")
    found = [{name: value for name, value in first.items() if name != "others"}]
    return found + [each for each in others if isinstance(each, dict)] if isinstance(others, list) else found


def origin(lines: Iterable[Line], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `environment` for a summary of `lines`: the environment of most lines, with the other environments in
    `others`.

    Each environment is described in full in one of `lines` or in the previous summary `before`. Lines of older versions
    name no environment: for them, the environments without a key in `before` are used.
    """
    named = environments(before)
    by_key = {each["key"]: each for each in named if isinstance(each.get("key"), str)}
    silent = [each for each in named if "key" not in each] or [{}]
    of_lines = [_environment(line) for line in lines]
    keys = [each.get("key") if isinstance(each, dict) else each for each in of_lines]
    by_key |= {key: each for key, each in zip(keys, of_lines, strict=True) if isinstance(each, dict)}
    found: list[dict[str, Any]] = []
    for key, _ in Counter(key if isinstance(key, str) else None for key in keys).most_common():
        found += silent if key is None else [by_key.get(key, {"key": key})]
    first, *others = found
    return {**first, "others": others} if others else first


def shown_environment(value: Any) -> dict[str, Any]:
    """Return the environment of a summary or a measurement, or an empty dict if it is missing or invalid."""
    return {} if misfit(Environment, value) else value


def _environment(line: Line) -> Any:
    """Return the environment of a line, in full or as its key; None if the line has no environment."""
    timing = line.get("timing")
    return timing.get("environment") if isinstance(timing, dict) else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> dict[str, Any]:
    """Return the commit of this checkout and whether it has edits; the commit of an installed package is None."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != CHECKOUT:  # such as the repository around a virtual environment
        return {"git_commit": None, "git_dirty": False}
    edited = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": bool(edited)}


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=10)
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
