"""The jobs of the reference run, from the command lines in sweeps.yaml."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from compresskv.folders import CONF
from evals.compose import plain, refused_in_a_sentence
from evals.job import Job, job_from
from evals.report import experiments

SWEEPS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("sweeps.yaml").read_text(encoding="utf-8"))
"""Command lines by part."""


EVERYWHERE = ("model.dtype=float32",)
"""Overrides of every command line: processors with bfloat16 and without it give the same tables."""


def jobs(part: str, *overrides: str) -> list[Job]:
    """All jobs of a part, each command line with these overrides too. Raises `UserError` as a command line does."""
    made = []
    for line in SWEEPS[part]:
        made += [job_from(config) for config in configurations([*EVERYWHERE, *line.split(), *overrides])]
    return made


def configurations(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The resolved configurations of `python run.py -m <overrides>`. Raises `UserError` where there are none."""
    swept: dict[str, list[str]] = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.get_key_element()
        if override.is_sweep_override():
            swept[name] = list(override.sweep_string_iterator())
        else:
            fixed[name] = str(override.input_line)
    of_experiment = experiments.axes(*fixed.values()) if "experiment" in fixed else {}
    axes = {name: values for name, values in of_experiment.items() if name not in fixed} | swept
    settings = [[f"{name}={value}" for value in values] for name, values in axes.items()]
    GlobalHydra.instance().clear()
    with refused_in_a_sentence(), initialize_config_dir(str(CONF), version_base="1.3"):
        every = [compose("config", [*fixed.values(), *given]) for given in itertools.product(*settings)]
        named = {"experiment": experiment.partition("=")[2]} if (experiment := fixed.get("experiment")) else {}
        return [plain(config) | named for config in every]
