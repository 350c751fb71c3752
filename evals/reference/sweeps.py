"""The jobs of the reference run, from the command lines in sweeps.yaml."""

from pathlib import Path

import yaml

from evals.compose import job_from, sweep
from evals.job import Job

SWEEPS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("sweeps.yaml").read_text(encoding="utf-8"))
"""Command lines by part."""

EVERYWHERE = ("model.dtype=float32",)
"""Overrides of every command line: processors with bfloat16 and without it give the same tables."""


def jobs(part: str, *overrides: str) -> list[Job]:
    """All jobs of a part, each command line with these overrides too. Raises `UserError` as a command line does."""
    configs = [config for line in SWEEPS[part] for config in sweep(*EVERYWHERE, *line.split(), *overrides)]
    return [job_from(config) for config in configs]
