"""A method's parameters belong to its parts, are checked by name, type and range, and never reach another part."""

import inspect
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import evals.compose  # noqa: F401  (registers the resolvers that the configuration uses)
from baselines.cake import TAUS
from baselines.headkv import KINDS
from compresskv.checking import frozen
from compresskv.errors import UserError
from compresskv.eviction import PromptShape
from compresskv.folders import CONF
from compresskv.layer_error import LayerErrorAllocator
from compresskv.methods import MethodConfig, Part, build, check_parameters, method_config, named_method
from compresskv.selecting_heads import count_heads
from tests.methods.construction import METHODS, context, method
from tests.support.command import ROOT
from tests.support.refusals import assert_about, refused

SCORERS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
ALLOCATORS = sorted(path.stem for path in (CONF / "method" / "allocator").glob("*.yaml"))
SHAPE = PromptShape(2, 2, 20, 2)


@cache
def configured(*overrides: str, root: str = "config") -> MethodConfig:
    """The method that Hydra composes, from `root` under conf/, and the job checks."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(root, list(overrides))
    config = method_config(OmegaConf.to_container(composed, resolve=True)["method"])  # type: ignore[index,call-overload]
    check_parameters(config)
    return config


def built(*overrides: str) -> Any:
    return build(configured(*overrides), context(SHAPE))


def parameters_of(path: str, part: str | None) -> dict[str, Any]:
    """The parameters of a part in a YAML under conf/method."""
    node = yaml.safe_load((CONF / "method" / path).read_text())
    node = node if part is None else node[part]
    return {key: value for key, value in (node or {}).items() if key != "_target_"}


def value_in(made: Any, name: str) -> Any:
    """The value of a parameter in a built part."""
    if name in ("heads", "head_scores") and not hasattr(made, "head_scores"):
        return getattr(made, "ranking", made).heads
    if name == "contest_grouping":
        return getattr(made, "contest", made).grouping
    return getattr(made, name)


def expected(parameters: dict[str, Any]) -> dict[str, Any]:
    """The values of parameters under the protocol and the calibration of `context`."""
    where = context(SHAPE)
    calibration = where.calibration
    assert calibration is not None
    out = dict(parameters)
    if "heads" in out:
        out["heads"] = calibration.top_heads(
            out.pop("head_scores"), count_heads(out["heads"], calibration, where.q_heads)
        )
    if "head_scores" in out:
        out["head_scores"] = calibration.scores(KINDS[out["head_scores"]])
    if "layers" in out:
        assert out["layers"] == "layer_error"
        out["layers"] = LayerErrorAllocator(calibration.layer_scores)
    null = {"taus": ((1.0, 1.0), (1.0, 1.0)), "grouping": "contiguous", "contest_grouping": "contiguous"}
    return {name: null[name] if value is None else value for name, value in out.items()}


def assert_has(made: Any, parameters: dict[str, Any]) -> None:
    for name, value in expected(parameters).items():
        assert value_in(made, name) == value, name


@pytest.mark.parametrize(
    ("scorer", "allocator"),
    [*zip(SCORERS, cycle(ALLOCATORS)), *(("compresskv", allocator) for allocator in ALLOCATORS)],
)
def test_a_pair_has_the_parameters_of_its_own_parts(scorer: str, allocator: str) -> None:
    config = configured(f"method/allocator={allocator}", root=f"method/{scorer}")
    made = build(config, context(SHAPE))
    if config.keeps_everything:
        assert made is None
        return
    assert made is not None
    assert_has(made.scorer, parameters_of(f"{scorer}.yaml", "scorer"))
    assert_has(made.allocator, parameters_of(f"allocator/{allocator}.yaml", None))


@pytest.mark.parametrize("name", SCORERS)
def test_a_method_has_the_parts_of_its_yaml(name: str) -> None:
    """So that its label is its name."""
    assert configured(root=f"method/{name}") == named_method(name)
    node = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
    assert node["name"] == named_method(name).name == name
    assert node["plain"]["scorer"] == (node["scorer"] and node["scorer"]["_target_"])


def parts() -> list[Any]:
    scorers = [pytest.param(config.scorer, id=name) for name, config in METHODS.items()]
    nodes = {name: yaml.safe_load((CONF / "method" / "allocator" / f"{name}.yaml").read_text()) for name in ALLOCATORS}
    return scorers + [pytest.param(Part(node.pop("_target_"), node), id=name) for name, node in nodes.items()]


@pytest.mark.parametrize("part", parts())
def test_a_yaml_has_exactly_the_arguments_of_its_maker(part: Part) -> None:
    """Typed, by keyword, and without a default, so that the YAML alone says what is used."""
    module, _, function = part.target.rpartition(".")
    maker = getattr(__import__(module, fromlist=[function]), function)
    first, *keywords = inspect.signature(maker).parameters.values()
    assert first.name == "context"
    assert {argument.name for argument in keywords} == set(part.parameters)
    for argument in keywords:
        assert argument.kind is inspect.Parameter.KEYWORD_ONLY
        assert argument.default is inspect.Parameter.empty
        assert argument.annotation is not inspect.Parameter.empty


def test_an_override_reaches_one_part_alone() -> None:
    calibration: Any = context(SHAPE).calibration
    made = built("method=compresskv", "method/allocator=headkv", "method.scorer.head_scores=semantic")
    assert made.allocator.head_scores == calibration.head_scores["traditional"]
    assert made.scorer.heads == calibration.top_heads("semantic", 1)
    assert built("method=snapkv", "method/allocator=pyramidkv", "method.allocator.beta=10").allocator.beta == 10


def test_whole_numbers_are_numbers_and_the_same_setting() -> None:
    whole, real = (configured("method=pyramidkv", f"method.allocator.beta={beta}") for beta in ("12", "12.0"))
    assert whole == real
    assert hash(whole) == hash(real)
    betas = [build(config, context(SHAPE)).allocator.beta for config in (whole, real)]  # type: ignore[union-attr]
    assert repr(betas) == "[12.0, 12.0]"


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["method=snapkv"], "snapkv"),
        (["method=compresskv", "method/allocator=uniform"], "compresskv-uniform"),
        (["method=headkv", "method/allocator=headkv"], "headkv"),
        (["method=snapkv", "method.scorer._target_=baselines.tova.scorer"], "snapkv-tova"),
        (["method=snapkv", "method.scorer=null"], "snapkv-full"),
        (["method=full", "method/allocator=pyramidkv"], "full"),
        (["method=full", "method.name=everything"], "everything"),
    ],
)
def test_a_composition_is_labelled_by_its_parts(overrides: list[str], label: str) -> None:
    assert configured(*overrides).name == label
    assert built("method=snapkv", "method.name=full") == built("method=snapkv")  # a name is only a label


@pytest.mark.parametrize(
    ("overrides", "field", "names"),
    [
        (["method=snapkv", "+method.gamma=3"], "method.gamma", "allocator, name"),
        (["method=cake", "+method.gamma=3"], "method.gamma", "method.scorer.gamma"),
        (["method=snapkv", "+method.scorer.foo=1"], "method.scorer.foo", ""),
        (["method=adakv", "+method.allocator.alhpa=1"], "method.allocator.alhpa", "method.allocator.alpha?"),
        (["method=cake", "~method.scorer.gamma"], "method.scorer.gamma", ""),
        (["method=snapkv", "method.scorer=3"], "method.scorer", "_target_"),
        (["method=snapkv", "method.allocator=null"], "method.allocator", "method/allocator=uniform"),
        (["method=snapkv", "method.plain=null"], "method.plain", "scorer"),
        (["method=snapkv", "method.name=../../x"], "method.name", ""),
        (["method=snapkv", "method.scorer._target_=baselines.snapkv.nothing"], "method.scorer._target_", ""),
        (["method=snapkv", "method.scorer._target_=os.environ"], "method.scorer._target_", ""),
    ],
)
def test_wrong_names(overrides: list[str], field: str, names: str) -> None:
    with refused(field, names=names):
        configured(*overrides)


@pytest.mark.parametrize(
    ("name", "field", "value", "allowed"),
    [
        ("pyramidkv", "allocator.beta", "abc", "1"),
        ("headkv", "allocator.beta", 0.5, "1"),
        ("headkv", "allocator.beta", 10**400, ""),
        ("headkv", "allocator.temp", None, "0"),
        ("headkv", "allocator.temp", -3, "0"),
        ("headkv", "allocator.temp", [], ""),
        ("headkv", "allocator.head_scores", "best", "retrieval, "),
        ("cake", "scorer.gamma", float("nan"), ""),
        ("cake", "scorer.gamma", -1, "0"),
        ("cake", "allocator.taus", [[1, 1], [1, 0]], "0.01"),
        ("cake", "allocator.taus", [1, 1], "2"),
        ("adakv", "allocator.alpha", True, ""),
        ("adakv", "allocator.alpha", 1.5, "1"),
        ("random", "scorer.seed", 1.5, ""),
        ("random", "scorer.seed", 10**20, "2147483648"),
        ("random", "scorer.seed", {}, ""),
        ("compresskv", "scorer.heads", "abc", "1"),
        ("compresskv", "scorer.heads", True, ""),
        ("compresskv", "scorer.heads", 0, "1"),
        ("compresskv", "scorer.heads", 5, "4"),
    ],
)
def test_wrong_values(name: str, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        method(name, context(SHAPE), **{field.partition(".")[2]: value})
    wrong, place = caught.value.value, f"method.{field}"
    if caught.value.field != place:  # one item of it
        assert (caught.value.field, wrong) in ((f"{place}[1][1]", 0), (f"{place}[0]", 1))
    else:
        assert repr(wrong) == repr(frozen(value))
    assert_about(caught.value, caught.value.field, names=allowed)


def test_taus_are_the_models() -> None:
    """By model name, ignoring case; 1.0 for other models; a setting overrides both."""
    for model, expected in [("Llama-3.1-8B-Instruct", TAUS["llama-3.1-8b-instruct"]), ("other", ((1.0, 1.0),) * 2)]:
        where = context(SHAPE, model=model)
        assert method("cake", where).allocator.taus == expected  # type: ignore[attr-defined]
        chosen = method("cake", where, taus=[[2, 1], [3, 1]]).allocator
        assert chosen.taus == ((2.0, 1.0), (3.0, 1.0))  # type: ignore[attr-defined]


def test_a_method_from_outside_the_tree(tmp_path, monkeypatch) -> None:
    """Its parameters are checked like others; wrong names are found without importing it."""
    source = """
raise_on_import = __import__("os").environ["METHOD_MAY_BE_IMPORTED"]
from typing import Annotated
from compresskv.checking import Ge
from baselines.knorm import KeyNormScorer

def make(context, *, strength: Annotated[int, Ge(1)]):
    return KeyNormScorer(window=strength)
"""
    (tmp_path / "own_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    node = {
        "name": "own",
        "scorer": {"_target_": "own_method.make", "strength": 3},
        "allocator": {"_target_": "baselines.uniform.allocator"},
        "plain": {"scorer": "own_method.make", "allocator": "baselines.uniform.allocator"},
    }
    config = method_config(node)
    assert config.name == "own"
    with refused("method.scorer.stregth", names="method.scorer.strength"):
        method_config({**node, "scorer": {"_target_": "own_method.make", "stregth": 3}})
    with refused("method.scorer._target_", value="own_method.make"):
        check_parameters(config)
    monkeypatch.setenv("METHOD_MAY_BE_IMPORTED", "1")
    check_parameters(config)
    made = build(config, context(SHAPE))
    assert made is not None
    assert made.window == 3
