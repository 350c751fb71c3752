"""Which evaluation a name or a class belongs to: results go by name, and no other evaluation may take a known one."""

import re
from functools import cache

import yaml

from compresskv.folders import CONF

TITLES = {"niah": "needle in a haystack", "longbench": "LongBench", "head_masking": "head masking"}
"""How evaluations of `conf/eval` are headed, by name, where that is not their name."""


def kind_of(target: str) -> str:
    """The name in `conf/eval` of the evaluation that `_target_` names, wherever in its package; else `target`."""
    for name, known in targets().items():
        if target.split(".")[:-2] == known.split(".")[:-2]:
            return name
    return target


def reserved(name: str) -> str | None:
    """The name in `conf/eval` of the evaluation that a reader takes `name` for; None for any other name."""
    for known in targets():
        if _spelt(name) in (_spelt(known), _spelt(TITLES.get(known, known))):
            return known
    return None


@cache
def targets() -> dict[str, str]:
    """The `_target_` of each evaluation of `conf/eval`, by its name there."""
    return {path.stem: yaml.safe_load(path.read_bytes())["_target_"] for path in sorted((CONF / "eval").glob("*.yaml"))}


def _spelt(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
