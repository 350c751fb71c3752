"""Every setting of every composed configuration: taken only where a range says so, else refused in one sentence."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from compresskv.errors import UserError
from compresskv.folders import CONF
from compresskv.methods import Part, label_of
from evals.compose import job_from
from evals.launch.groups import sweep_jobs
from tests.support.jobs import composed
from tests.support.refusals import refused

NEVER: list[Any] = [math.nan, math.inf, 10**25, "\0", [None], {"": math.nan}]
"""What no setting takes, whatever it is for."""

SOMETIMES: list[Any] = [None, True, -1, 0, 0.5, 3, "", "x", "x" * 5000, [], {}, {"a": 1}]
"""What some settings take."""

NEEDED = {
    "eval=jsonl": ["eval.data=x.jsonl"],
    **{f"method/allocator={name}": [f"method={name}"] for name in ("cake", "adakv", "adacompresskv")},
    **{f"method/allocator=kvpress/{name}": ["method=kvpress/knorm"] for name in ("adakv", "pyramidkv")},
}
"""What an option cannot do without."""

DIGITS_ARE_A_NAME = {"model.name", "model.path", "model.package", "model.revision"}

TAKES_MAPPINGS = {
    "model.chat_template_kwargs",
    "method.scorer.settings",
    "hydra.launcher.sbatch",
    "hydra.sweeper.params",
}

GROUPS = ("model", "method", "eval", "protocol", "logger", "paths")
"""Folders of conf/ with settings of their own; experiments and sizes set what these have."""


def options() -> Iterator[tuple[str, str]]:
    """Every option of every group that sets what no other does, as an override, with the node of its settings."""
    kinds = set()
    for group in GROUPS:
        for path in sorted((CONF / group).rglob("[!_]*.yaml")):
            content = yaml.safe_load(path.read_text())
            settings = {leaf for leaf in leaves(content) if leaf[0] != "evals"}
            targets = {
                node["_target_"]
                for node in (content, *content.values())
                if isinstance(node, dict) and "_target_" in node
            }
            if (kind := (group, frozenset(settings), frozenset(targets))) in kinds:
                continue
            kinds.add(kind)
            name = path.relative_to(CONF / group).with_suffix("").as_posix()
            if name.startswith("allocator/"):
                yield name.replace("allocator/", "method/allocator="), "method.allocator"
            else:
                yield f"{group}={name}", group


def leaves(node: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values, and of all mappings."""
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from leaves(value, (*prefix, key))


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The configuration with another value at `path`."""
    first, *rest = path
    inner = found if isinstance(found := config.get(first), Mapping) else {}  # such as fidelity, which has a short form
    return {**config, first: changed(inner, tuple(rest), value) if rest else value}


def assert_taken_or_refused(check: Callable[[Any], Any], place: tuple[str, ...]) -> None:
    """Assert that `check(value)` of the setting at `place` refuses what cannot be, in a sentence that names it."""
    name, taken = ".".join(place), []
    for value in (*NEVER, *SOMETIMES):
        try:
            check(value)
        except UserError as error:
            field, fix, sentence = error.field or "", error.fix, str(error)
            assert field.startswith((name, ".".join(place[:-1]) or name)), f"{name}={value!r}: {sentence}"
            assert fix
            assert sentence.isprintable()
            assert len(sentence) < 600
        else:
            taken.append(value)
    never = [value for value in NEVER if value != 10**25 or name not in DIGITS_ARE_A_NAME]
    assert not [value for value in never if any(value is other for other in taken)], f"{name} takes some of {taken}"
    if name not in TAKES_MAPPINGS:
        assert {"a": 1} not in taken, f"{name} takes a mapping"


base = cache(composed)


def given(override: str, *overrides: str) -> dict[str, Any]:
    """The configuration with `overrides`, composed once, and then this one, its value in YAML."""
    name, _, value = override.lstrip("+").partition("=")
    return changed(base(*overrides), tuple(name.split(".")), yaml.safe_load(value))


TESTED: set[tuple[Any, ...]] = set()
"""Settings of other options, by their place and by what is built there."""


def known_already(config: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Whether the setting is one of another option that was tested; `_target_` is one everywhere."""
    nodes = [config]
    for key in path[:-1]:
        nodes.append(nodes[-1][key])
    place = (path, *(node.get("_target_") for node in nodes))
    known = place in TESTED
    TESTED.add(place)
    return known


@pytest.mark.parametrize(("option", "node"), [*options(), ("", "")])
def test_every_value_of_every_setting_is_taken_or_refused_in_a_sentence(option, node):
    config = base(*filter(None, [option]), *NEEDED.get(option, []))
    job_from(config)
    for path in leaves(config):
        of_node = ".".join(path).startswith(node) if node else path[0] not in GROUPS
        # Those of model.evals are defaults of evaluations, checked where they are used.
        if of_node and path[:2] != ("model", "evals") and not known_already(config, path):
            assert_taken_or_refused(lambda value, path=path: job_from(changed(config, path, value)), path)


@pytest.mark.parametrize("group", ["launcher", "sweeper"])
def test_every_value_of_every_launcher_is_taken_or_refused_in_a_sentence(group):
    jobs = sweep_jobs([base()])
    for option in sorted(path.stem for path in (CONF / "hydra" / group).glob("*.yaml")):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"hydra/{group}={option}"], return_hydra_config=True)
        node = OmegaConf.to_container(config.hydra[group], resolve=True)
        plugin = resolve_name(node.pop("_target_"))
        node.pop("_convert_", None)
        assert node

        def check(settings, plugin=plugin):
            made = plugin(**settings)
            made.check()
            if group == "launcher":
                made.runner(jobs)

        check(node)
        for path in leaves(node):
            place = ("hydra", group, *path)
            assert_taken_or_refused(lambda value, n=node, path=path: check(changed(n, path, value)), place)


REFUSED = {
    "budget": ["0", "-1", "1.5", "true", "null"],
    "prefill_chunk": ["0"],
    "memory": ["0", "-1", ".nan"],
    "calibration": ["''"],
    "observation.window": ["0"],
    "observation.kernel": ["4"],
    "observation.pooling": ["sum"],
    "model.window": ["0", "99999999999"],
    "model.dtype": ["int4"],
    "model.name": ["../../x", "''"],
    "model.device": ["gpu"],
    "protocol.name": ["../x"],
    "protocol.score_dtype": ["bfloat16"],
    "paths.results": ["''"],
    "eval.max_new_tokens": ["0", "-1"],
    "eval.depths": ["0", "[]"],
    "eval.depths[0]": ["[150]", "[-1]", "[.nan]"],
    "eval.lengths": ["[]", "4"],
    "eval.lengths[0]": ["[-1]"],
    "eval.name": ["../x"],
    "method.name": ["../x", "''"],
}
OF_OTHERS = [
    ("eval=efficiency", "eval.lengths[0]", "[-1]"),
    ("eval=efficiency", "eval.new_tokens", "1"),
    ("eval=efficiency", "eval.pools[0]", "[0]"),
    ("eval=efficiency", "eval.pools", "64"),
    ("eval=longbench", "eval.max_length", "0"),
    ("eval=longbench", "eval.limit", "0"),
    ("eval=longbench", "eval.tasks", "[]"),
    ("eval=calibrate", "eval.source", "nowhere"),
    ("logger=wandb", "logger.mode", "somewhere"),
    ("method=cake", "method.scorer.gamma", ".nan"),
    ("method=cake", "method.allocator.taus[1][1]", "[[1,1],[1,-1]]"),
    ("method=headkv", "method.allocator.temp", "-3"),
    ("method=pyramidkv", "method.allocator.beta", "0.5"),
    ("method=random", "method.scorer.seed", "99999999999999999999"),
    ("method=compresskv", "method.scorer.heads", "true"),
]


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [*(("", field, value) for field, values in REFUSED.items() for value in values), *OF_OTHERS],
)
def test_what_cannot_be_is_refused(option, field, value):
    with refused(field):
        job_from(given(f"{field.partition('[')[0]}={value}", *filter(None, [option])))


@pytest.mark.parametrize(
    ("override", "field", "meant"),
    [
        ("+budgett=3", "budgett", "budget"),
        ("+methods=3", "methods", "method"),
        ("+method.foo=3", "method.foo", ""),
        ("+method.scorer.foo=3", "method.scorer.foo", ""),
        ("+logger.foo=1", "logger.foo", ""),
        ("+eval.length=[1]", "eval.length", "eval.lengths"),
        ("+model.dtypes=x", "model.dtypes", "model.dtype?"),
        ("+protocol.exact=x", "protocol.exact", ""),
        ("+observation.windows=3", "observation.windows", "observation.window?"),
        ("+paths.result=x", "paths.result", "paths.results"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(override, field, meant):
    with refused(field, names=meant):
        job_from(given(override))


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("method.scorer.kernel=3", "observation.kernel"),
        ("+method.scorer.kernel=3", "observation.kernel"),
        ("+method.allocator.pooling=max", "observation.pooling"),
        ("method.window=4", "observation.window"),
        ("+method.window=4", "observation.window"),
        ("kernel=3", "observation.kernel"),
        ("lengths=[100]", "eval.lengths"),
        ("model.heads=2", "method.scorer.heads"),
    ],
)
def test_a_setting_of_another_node_is_named(override, meant):
    with pytest.raises(UserError) as caught:
        job_from(composed(override))
    assert meant in caught.value.fix


def test_a_setting_that_is_missing_is_named():
    config = base()
    for name in config:
        with refused(name):
            job_from({key: value for key, value in config.items() if key != name})


def test_whole_numbers_and_others_are_one_setting():
    first, second = (job_from(composed("method=pyramidkv", f"method.allocator.beta={beta}")) for beta in ("20", "20.0"))
    assert first.method == second.method
    assert hash(first.method) == hash(second.method)


def test_the_name_of_a_method_is_a_label():
    job = job_from(composed("method=snapkv", "method.name=full"))
    assert not job.method.keeps_everything
    assert job.method.name == "full-snapkv-uniform"
    assert job.budget == 256
    assert job_from(composed("method=full")).budget is None
    assert Path(job.results) == Path("results")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=compresskv", "method.name=snapkv"], "snapkv-semantic_heads-layer_error"),
        (["method=random", "method.name=SnapKV"], "SnapKV-random_keep"),
        (["method=full", "method.name=compresskv"], "compresskv-full"),
        (["method=random", "method.name=compresskv-uniform"], "compresskv-random_keep-uniform"),
        (["method=snapkv", "method/allocator=headkv"], "snapkv-headkv"),
        (["method=random", "method.name=mine"], "mine"),
        (["method=random", "method.name=snapkv-v2"], "snapkv-v2"),
    ],
)
def test_a_method_by_the_name_of_another_says_what_it_is(overrides, name):
    job = job_from(composed(*overrides))
    assert job.method.name == name
    # What was stored under another's name is read as what it is; a name of one's own stays.
    ours = name not in ("mine", "snapkv-v2")
    assert label_of(job.config["method"], "recorded") == (name if ours else "recorded")


def test_a_part_of_ones_own_that_is_called_like_one_of_ours_has_its_whole_name():
    assert Part("mine.layer_error.allocator").label == "mine.layer_error"
    assert Part("mine.uniform").label == "mine.uniform"
    assert Part("mine.spread.scorer").label == "spread"


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ([], "SnapKV 256"),
        (["protocol=released"], "SnapKV 256 (released)"),
        (["protocol.exact_budget=false"], "SnapKV 256 (corrected* exact_budget=false)"),
        (["protocol=released", "protocol.exact_budget=true"], "SnapKV 256 (released* exact_budget=true)"),
        (["protocol.name=mine", "protocol.exact_budget=false"], "SnapKV 256 (mine)"),
    ],
)
def test_a_protocol_that_is_not_what_its_name_stands_for_is_marked(overrides, label):
    assert job_from(composed("method=snapkv", *overrides)).label == label


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["eval=jsonl", "eval.data=x.jsonl", "eval.name=longbench"], "eval.name"),
        (["eval=jsonl", "eval.data=x.jsonl", "eval.name=Long-Bench"], "eval.name"),
        (["eval=niah", "eval.name=head_masking"], "eval.name"),
        (["eval=efficiency", "eval.name=niah"], "eval.name"),
        (["model.name=llama-3.1-8b-instruct"], "model.name"),
        (["model=qwen2.5-7b-instruct", "model.name=Mistral-7b-Instruct-v0.3"], "model.name"),
    ],
)
def test_a_name_of_something_else_is_refused(overrides, field):
    with refused(field):
        job_from(composed(*overrides))


def test_names_of_ones_own_and_copies_of_a_model_are_taken():
    assert job_from(composed("eval=jsonl", "eval.data=x.jsonl", "eval.name=mine")).eval.name == "mine"
    assert job_from(composed("eval=niah", "eval.name=needles")).eval.name == "needles"
    assert job_from(composed("model=mistral-7b-instruct-v0.3", "model.path=/copy")).model.path == "/copy"
    assert job_from(composed("model.path=/copy", "model.name=llama-3.1-8b-instruct")).model.path == "/copy"
