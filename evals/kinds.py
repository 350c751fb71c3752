"""Map names and classes to evaluations. Results use the name, so the names of built-in evaluations are reserved."""

import re
from functools import cache

import yaml

from compresskv.folders import CONF

TITLES = {"niah": "needle in a haystack", "longbench": "LongBench", "head_masking": "head masking"}
"""Titles of evaluations in `conf/eval` whose title differs from their name."""


def kind_of(target: str) -> str:
    """Return the name in `conf/eval` of the evaluation in the same package as `target`; without one, `target`."""
    for name, known in targets().items():
        if target.split(".")[:-2] == known.split(".")[:-2]:
            return name
    return target


def reserved(name: str) -> str | None:
    """Return the evaluation in `conf/eval` whose name or title equals `name` up to spelling, or None."""
    for known in targets():
        if _spelt(name) in (_spelt(known), _spelt(TITLES.get(known, known))):
            return known
    return None


@cache
def targets() -> dict[str, str]:
    """Return the `_target_` of each evaluation in `conf/eval`, by its name there."""
    return {path.stem: yaml.safe_load(path.read_bytes())["_target_"] for path in sorted((CONF / "eval").glob("*.yaml"))}


def _spelt(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
