"""conf/method/kvpress against the installed kvpress: every press is served with its defaults, or refused."""

import inspect
from importlib.metadata import version

import pytest
import yaml

from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.methods import METHODS, build, check_parameters, named_method
from evals.compose import expansion, job
from evals.tables.methods import named
from tests.support.kvpress_here import kvpress_or_skip
from tests.support.refusals import refused

kvpress = kvpress_or_skip()

FOLDER = METHODS / "kvpress"
SERVED = sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))
REFUSED = yaml.safe_load((FOLDER / "_refused.yaml").read_text("utf-8"))
COMPOSED = {"adakv_compactor": "CompactorPress", "adakv_snapkv": "SnapKVPress"}
"""Presses over another one that kvpress's leaderboard names (evaluation/evaluate_registry.py): AdaKV over these."""

OURS = {"press", "settings"}
"""How a press that needs another one is told which; kvpress has no default for it."""

ELSEWHERE = {
    "adakv": {"alpha_safeguard": "adakv"},
    "pyramidkv": {"beta": "pyramidkv"},
}
"""Fields that belong to an allocator."""


def presses():
    """The press classes that kvpress exports, by their names as methods have them, without underscores."""
    found = {}
    for name in kvpress.__all__:
        kind = getattr(kvpress, name)
        if isinstance(kind, type) and issubclass(kind, kvpress.BasePress):
            found[name.removesuffix("Press").casefold()] = kind
    return found


def defaults(kind):
    """The parameters of a press and their defaults, without the ratio and the other press."""
    parameters = inspect.signature(kind).parameters  # of a dataclass, its fields
    names = [name for name in parameters if not name.startswith("_") and name not in ("compression_ratio", "press")]
    return {name: parameters[name].default for name in names}


def test_every_press_is_served_or_refused():
    known = {name.replace("_", "") for name in [*SERVED, *REFUSED] if name not in COMPOSED}
    assert set(presses()) - {"base", "scorer"} == known
    assert len(SERVED) >= 20


def test_every_scorer_press_that_downloads_nothing_is_served():
    scorers = {name for name, kind in presses().items() if issubclass(kind, kvpress.ScorerPress)} - {"scorer"}
    downloading = {name.replace("_", "") for name, why in REFUSED.items() if "downloads" in why}
    assert scorers - downloading <= {name.replace("_", "") for name in SERVED}
    assert len(scorers - downloading) >= 15


@pytest.mark.parametrize("name", sorted(set(SERVED) - set(COMPOSED)))
def test_the_defaults_are_those_of_the_press(name):
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    given = {key: value for key, value in node["scorer"].items() if key != "_target_" and key not in OURS}
    for field, allocator in ELSEWHERE.get(name, {}).items():
        given[field] = yaml.safe_load((METHODS / "allocator" / "kvpress" / f"{allocator}.yaml").read_text("utf-8"))[
            field
        ]
    assert given == defaults(presses()[name.replace("_", "")])
    assert node["name"] == f"kvpress.{name}"


def test_the_leaderboards_presses_over_another_one_have_its_defaults():
    adakv = defaults(kvpress.AdaKVPress)
    compactor, snapkv = (job(f"method=kvpress/{name}").method for name in COMPOSED)
    assert dict(compactor.scorer.parameters) == {**defaults(kvpress.CompactorPress), **adakv}
    assert dict(snapkv.scorer.parameters) == {"press": "snapkv", "settings": {}}
    chunkkv = job("method=kvpress/chunkkv").method.scorer.parameters
    assert dict(chunkkv) == {"press": "snapkv", "settings": {}, "chunk_length": 20}
    for method in (compactor, snapkv):
        assert dict(method.allocator.parameters) == adakv


@pytest.mark.parametrize("name", SERVED)
def test_a_press_composes_and_its_name_is_known(name):
    made = job(f"method=kvpress/{name}")
    assert made.method.name == f"kvpress.{name}"
    assert named(made.method.name) != made.method.name
    assert made.method == named_method(f"kvpress/{name}") == named_method(f"kvpress.{name}")
    check_parameters(made.method)


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_no_tokens_is_refused_with_the_reason(name):
    for make in (lambda: job(f"method=kvpress/{name}"), lambda: named_method(f"kvpress/{name}")):
        with refused("method") as error:
            make()
        assert error.value.why == REFUSED[name]


def test_allocators_compose_with_presses():
    for allocator in ("adakv", "kvpress/adakv", "layer_error", "pyramidkv"):
        made = job("method=kvpress/expected_attention", f"method/allocator={allocator}")
        assert made.method.name == f"kvpress.expected_attention-{allocator.replace('/', '_')}"
        assert named(made.method.name).count("(") == 1


@pytest.mark.parametrize(
    ("press", "override", "field", "fix"),
    [
        ("keydif", "budget=64", "method", "kvpress/keydiff"),
        # Heads of equal scores are not compared.
        ("tova", "method/allocator=kvpress/adakv", "method/allocator", ""),
        ("streaming_llm", "method/allocator=kvpress/adakv", "method/allocator", ""),
        ("expected_attention", "method.scorer.n_sinks=3", "method.scorer.n_sinks", ""),
        ("expected_attention", "method.scorer.n_sink=-1", "method.scorer.n_sink", ""),
        ("expected_attention", "method.scorer.n_sink=1.5", "method.scorer.n_sink", ""),
        ("expected_attention", "method.scorer.epsilon=text", "method.scorer.epsilon", ""),
        # It needs hidden states.
        ("expected_attention", "prefill_chunk=512", "prefill_chunk", ""),
    ],
)
def test_what_a_press_cannot_take_is_refused(press, override, field, fix):
    with refused(field, names=fix):
        job(f"method=kvpress/{press}", override)


@pytest.mark.parametrize(
    ("press", "override"),
    [
        ("keydiff", "prefill_chunk=512"),
        # What comments offer.
        *(("cur", f"method.scorer.leverage_type={value}") for value in ("key", "value", "kv_avg")),
        *(("block", f"method.scorer.press={press}") for press in ("knorm", "cur", "lagkv", "random")),
    ],
)
def test_what_a_press_takes(press, override):
    name, _, value = override.partition("=")
    made = job(f"method=kvpress/{press}", override)
    assert str(made.method.scorer.parameters.get(name.split(".")[-1], made.prefill_chunk)) == value


def test_a_sweep_sets_a_parameter_of_one_press():
    jobs = expansion(["method=full,kvpress/snapkv", "budget=64", "for.kvpress.snapkv.scorer.window_size=8,16"])
    sizes = ["method.scorer.window_size=8", "method.scorer.window_size=16"]
    assert jobs == [["method=full", "budget=64"], *(["method=kvpress/snapkv", "budget=64", size] for size in sizes)]
    with pytest.raises(UserError):
        expansion(["method=full,snapkv", "for.kvpress.snapkv.scorer.window_size=8"])


def test_the_version_of_kvpress_is_part_of_a_method():
    made = build(job("method=kvpress/keydiff").method, Context("model", layers=2, q_heads=6, kv_heads=3))
    assert made.scorer.version == version("kvpress")
