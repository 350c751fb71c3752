"""What a comment in conf/ offers is what its setting takes: `null: …`, `a or b`, `a | b`, `or a list`, `false: …`.

A comment promises in these forms, which `promised` reads. Whoever adds a choice to a comment or to a type has to add it
to the other, or one of these tests fails.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from compresskv.checking import type_hints
from compresskv.errors import UserError
from compresskv.folders import CONF
from compresskv.model_config import ModelConfig
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from evals import compose
from evals.compose import job_from
from evals.help import as_typed, comments
from evals.launch.slurm.config import SlurmConfig
from tests.support.jobs import composed
from tests.test_job import NEEDED, base, changed

TOKEN = r"[\w./-]+"

OFFERED = re.compile(rf"(?:^|[:;.,] )(\[\]|{TOKEN}):(?= |$)")
"""`value: what it means`, at the beginning of a clause."""

BESIDE = re.compile(rf"^{TOKEN}(?: \| {TOKEN})+")
"""`a | b`."""

FLOW = re.compile(r"(?:^|[:;] )(\[[^\[\]]*\]|\{[^{}]*\})(?=[,;]|$)")
"""An example in YAML, `[0,1]`."""


def promised(comment: str, usual: Any) -> list[Any]:
    """The values that a comment offers for a setting whose value is `usual`."""
    comment = re.sub(r" \([^)]*\)", "", comment)
    texts = FLOW.findall(comment)
    words = FLOW.sub("; …", comment)
    texts += OFFERED.findall(words)
    for clause in re.split(r"[:;.] ", words.rstrip(".")):
        if beside := BESIDE.match(clause):
            texts += beside[0].split(" | ")
        items = re.split(r", or |, | or ", clause.removeprefix("or "))
        tokens = [item for item in items if re.fullmatch(TOKEN, item)]
        if clause.startswith("or ") or ", or " in clause or (" or " in clause and len(tokens) == len(items)):
            texts += tokens
    values = [yaml.safe_load(text) for text in texts]
    if words.startswith("whether "):
        values += [True, False]
    if re.search(r"\b(?:as|or) (?:a|the) list\b", words) and not isinstance(usual, list):
        values.append([50] if isinstance(usual, int) else ["qasper"])
    return values


def files() -> Iterator[tuple[Path, str]]:
    """Every file of settings, with the node that it makes up."""
    for path in sorted(CONF.rglob("*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        # The presses of kvpress are checked in tests/kvpress, where it is installed.
        if group not in ("experiment", "size", "method/ablation") and path.parent.name != "kvpress":
            yield path, "" if group == "." else group.replace("/", ".")


def choice(path: Path) -> list[str]:
    """The overrides under which the file is composed."""
    group, name = path.parent.relative_to(CONF).as_posix(), path.stem
    if group == "." or name.startswith("_"):
        return []
    return [f"{group}={name}", *NEEDED.get(f"{group}={name}", [])]


@cache
def whole(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose.compose("config", list(overrides), return_hydra_config=True)


def check(setting: str, value: Any, overrides: list[str]) -> None:
    """Raise `UserError` unless the setting takes the value in the configuration of `overrides`."""
    place = setting.split(".")
    if setting.startswith("hydra."):
        node = OmegaConf.to_container(whole(*overrides).hydra[place[1]], resolve=True)
        plugin = resolve_name(node.pop("_target_"))
        node.pop("_convert_", None)
        plugin(**changed(node, tuple(place[2:]), value)).check()
    elif setting.startswith("model.evals."):
        job_from(composed(*overrides, f"eval={place[2]}", f"{setting}={as_typed(value)}"))
    else:
        job_from(changed(base(*overrides), tuple(place), value))


def annotation(setting: str, overrides: list[str]) -> Any:
    """The annotation of a setting, None where it has none of a field's."""
    *node, name = setting.split(".")
    kinds: Mapping[str, Any] = {
        "model": ModelConfig,
        "protocol": EvaluationProtocol,
        "observation": ObservationConfig,
        "hydra.launcher": SlurmConfig,
    }
    where = ".".join(node)
    kind = kinds.get(where)
    if where in ("eval", "logger", "method.scorer", "method.allocator"):
        values: Any = base(*overrides)
        for key in node:
            values = values[key]
        kind = resolve_name(values["_target_"]) if values.get("_target_") else None
    return type_hints(kind).get(name) if kind else None


def choices(hint: Any) -> set[Any]:
    """The choices of all `Literal`s in an annotation."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*(choices(part) for part in get_args(hint)))


def test_what_a_comment_offers_is_read():
    assert promised("average or max", "average") == ["average", "max"]
    assert promised("or longbench", "held_out") == ["longbench"]
    assert promised("contiguous | strided: query heads; null: as usual", None) == [None, "contiguous", "strided"]
    assert promised("per cent, as a list; or how many, from 0 to 100", 5) == [[50]]
    assert promised("the 16; or all21, or a list of names", "english") == ["all21", ["qasper"]]
    assert promised("whether it runs", False) == [True, False]
    assert promised("MB; []: none at all; 0: nothing", [1]) == [[], 0]
    assert promised("[0,1], as CUDA names them; null: all", None) == [[0, 1], None]
    assert promised("for longbench: only the first rows, six or so of a task", None) == []


def commented() -> Iterator[Any]:
    """Every commented setting, but those of `model.evals` that no evaluation has: an experiment takes them."""
    for path, node in files():
        for setting, comment in comments(path, f"{node}." if node else "").items():
            if setting.startswith("model.evals.") and not (CONF / "eval" / f"{setting.split('.')[2]}.yaml").exists():
                continue
            yield pytest.param(path, setting, comment, id=f"{path.relative_to(CONF).with_suffix('')}-{setting}")


@pytest.mark.parametrize(("path", "setting", "comment"), commented())
def test_every_setting_takes_what_its_comment_offers(path, setting, comment):
    overrides = choice(path)
    usual = OmegaConf.select(whole(*overrides), setting)
    usual = OmegaConf.to_container(usual) if OmegaConf.is_config(usual) else usual
    for value in promised(comment, usual):
        try:
            check(setting, value, overrides)
        except UserError as error:
            raise AssertionError(f"{path.name}: the comment offers {value!r}: {error}") from error


def test_every_choice_of_a_type_is_in_a_comment():
    said: dict[str, str] = {}
    types: dict[str, set[Any]] = {}
    for path, node in files():
        text = yaml.safe_load(path.read_text()) or {}
        overrides = choice(path)
        for setting, comment in comments(path, f"{node}." if node else "").items():
            leaf: Any = text
            for key in setting.removeprefix(f"{node}.").split("."):
                leaf = leaf[key]
            said[setting] = f"{said.get(setting, '')} {comment} {leaf}"
            types.setdefault(setting, set()).update(choices(annotation(setting, overrides)))
    assert sum(bool(known) for known in types.values()) > 20
    missing = {
        setting: left
        for setting, known in types.items()
        if (left := {value for value in known if not re.search(rf"\b{re.escape(str(value))}\b", said[setting])})
    }
    assert not missing
