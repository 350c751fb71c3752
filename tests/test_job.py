"""Every setting of a composed configuration: accepted only where a range says so, otherwise refused in one sentence."""

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compresskv.errors import UserError
from evals.compose import CONF, composed
from evals.job import job_from

OPTIONS = [
    "eval=niah",
    "eval=longbench",
    "eval=efficiency",
    "eval=calibrate",
    "logger=wandb",
    *(f"method={path.stem}" for path in sorted((CONF / "method").glob("*.yaml"))),
    *(f"method/allocator={path.stem}" for path in sorted((CONF / "method" / "allocator").glob("*.yaml"))),
    *(f"model={path.stem}" for path in sorted((CONF / "model").glob("[!_]*.yaml"))),
]

VALUES: list[Any] = [None, True, -1, 0, 0.5, 3, 10**25, math.nan, math.inf, "", "x", "\0", [], [None], {}, {"a": 1}]


def leaves(node: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values, and of all mappings."""
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from leaves(value, (*prefix, key))


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The configuration with another value at `path`."""
    copied = copy.deepcopy(dict(config))
    node = copied
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return copied


@pytest.mark.parametrize("option", OPTIONS)
def test_every_value_of_every_setting_is_taken_or_refused_in_a_sentence(option):
    config = composed(option)
    job_from(config)
    for path in leaves(config):
        if path[:2] == ("model", "evals"):  # defaults of evaluations, checked where they are used
            continue
        for value in VALUES:
            try:
                job_from(changed(config, path, value))
            except UserError as error:
                sentence = str(error)
                assert "\n" not in sentence
                assert ".".join(path[:2]) in sentence or path[0] in sentence, f"{path}={value!r}: {sentence}"


REFUSED = [
    ("budget=0", "budget"),
    ("budget=-1", "budget"),
    ("budget=1.5", "budget"),
    ("budget=true", "budget"),
    ("budget=null", "budget"),
    ("prefill_chunk=0", "prefill_chunk"),
    ("memory=0", "memory"),
    ("memory=-1", "memory"),
    ("memory=nan", "memory"),
    ("calibration=''", "calibration"),
    ("observation.window=0", "observation.window"),
    ("observation.kernel=4", "observation.kernel"),
    ("observation.pooling=sum", "observation.pooling"),
    ("model.window=0", "model.window"),
    ("model.window=99999999999", "model.window"),
    ("model.dtype=int4", "model.dtype"),
    ("model.name=../../x", "model.name"),
    ("model.name=''", "model.name"),
    ("model.device=gpu", "model.device"),
    ("protocol.name=../x", "protocol.name"),
    ("protocol.score_dtype=bfloat16", "protocol.score_dtype"),
    ("paths.results=''", "paths.results"),
    ("eval.max_new_tokens=0", "eval.max_new_tokens"),
    ("eval.max_new_tokens=-1", "eval.max_new_tokens"),
    ("eval.depths=0", "eval.depths"),
    ("eval.depths=[150]", "eval.depths"),
    ("eval.depths=[-1]", "eval.depths"),
    ("eval.depths=[nan]", "eval.depths"),
    ("eval.depths=[]", "eval.depths"),
    ("eval.lengths=[-1]", "eval.lengths"),
    ("eval.lengths=[]", "eval.lengths"),
    ("eval.name=../x", "eval.name"),
    ("method.name=../x", "method.name"),
    ("method.name=''", "method.name"),
]


@pytest.mark.parametrize(("override", "field"), REFUSED)
def test_what_cannot_be_is_refused(override, field):
    with pytest.raises(UserError, match=f"^{field}".replace(".", r"\.")):
        job_from(composed(override))


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["eval=efficiency", "eval.lengths=[-1]"], "eval.lengths"),
        (["eval=efficiency", "eval.new_tokens=1"], "eval.new_tokens"),
        (["eval=efficiency", "eval.pools=[0]"], "eval.pools"),
        (["eval=efficiency", "eval.pools=64"], "eval.pools"),
        (["eval=longbench", "eval.max_length=0"], "eval.max_length"),
        (["eval=longbench", "eval.limit=0"], "eval.limit"),
        (["eval=longbench", "eval.tasks=[]"], "eval.tasks"),
        (["eval=calibrate", "eval.source=nowhere"], "eval.source"),
        (["logger=wandb", "logger.mode=somewhere"], "logger.mode"),
        (["method=cake", "method.scorer.gamma=nan"], "method.scorer.gamma"),
        (["method=cake", "method.allocator.taus=[[1,1],[1,-1]]"], "method.allocator.taus"),
        (["method=headkv", "method.allocator.temp=-3"], "method.allocator.temp"),
        (["method=pyramidkv", "method.allocator.beta=0.5"], "method.allocator.beta"),
        (["method=random", "method.scorer.seed=99999999999999999999"], "method.scorer.seed"),
        (["method=compresskv", "method.scorer.heads=true"], "method.scorer.heads"),
    ],
)
def test_what_cannot_be_is_refused_in_every_group(overrides, field):
    with pytest.raises(UserError, match=f"^{field}".replace(".", r"\.")):
        job_from(composed(*overrides))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+budgett=3", "budgett: no such setting: did you mean budget?"),
        ("+methods=3", "methods: no such setting: did you mean method?"),
        ("+method.foo=3", "method.foo: no such setting"),
        ("+method.scorer.foo=3", "method.scorer.foo: no such setting"),
        ("+logger.foo=1", "logger.foo: no such setting"),
        ("+eval.length=[1]", "eval.length: no such setting: did you mean eval.lengths?"),
        ("+model.dtypes=x", "model.dtypes: no such setting: did you mean model.dtype?"),
        ("+protocol.exact=x", "protocol.exact: no such setting"),
        ("+observation.windows=3", "observation.windows: no such setting: did you mean observation.window?"),
        ("+paths.result=x", "paths.result: no such setting: did you mean paths.results?"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(override, says):
    with pytest.raises(UserError) as caught:
        job_from(composed(override))
    assert str(caught.value).startswith(says)


def test_a_setting_that_is_missing_is_named():
    config = composed()
    for name in config:
        with pytest.raises(UserError, match=f"^{name}: is not set"):
            job_from({key: value for key, value in config.items() if key != name})


def test_whole_numbers_and_others_are_one_setting():
    first, second = (job_from(composed("method=pyramidkv", f"method.allocator.beta={beta}")) for beta in ("20", "20.0"))
    assert first.method == second.method
    assert hash(first.method) == hash(second.method)


def test_the_name_of_a_method_is_a_label():
    job = job_from(composed("method=snapkv", "method.name=full"))
    assert not job.method.keeps_everything
    assert job.budget == 256
    assert job_from(composed("method=full")).budget is None
    assert Path(job.results) == Path("results")
