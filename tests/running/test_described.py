"""A method's description is what its results folder is named after: alike in every process, another for another one."""

import collections
import copy
import functools
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.snapkv import SnapKVScorer
from baselines.uniform import UniformAllocator
from compresskv.checking import FrozenMapping
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod, LayerScores, Observation
from evals.running.described import canonical, describe
from tests.support.command import ROOT, folders
from tests.support.jobs import job
from tests.support.own_method import write_package
from tests.support.refusals import assert_about, refused


class Plain:
    """A scorer as people write one who know nothing of dataclasses."""

    window = 8

    def __init__(self, table: Any, name: str = "plain"):
        self.table, self.name = table, name

    def __call__(self, layer):
        return LayerScores(layer.keys[:, : layer.length - self.window].float().norm(dim=-1))

    @functools.cached_property
    def computed(self) -> list[int]:
        return [1]


class Slotted:
    __slots__ = ("power",)

    def __init__(self, power: float):
        self.power = power


@dataclass(frozen=True)
class Held:
    value: Any


@dataclass
class Base:
    value: int


class Derived(Base):
    def __init__(self, table: Any):
        super().__init__(1)
        self.table = table


class Kind(Enum):
    ONE = 1


def keep(scores):
    return scores


def test_built_in_methods_are_described_as_ever():
    method = EvictionMethod(SnapKVScorer(Observation(8, 5, "average")), UniformAllocator())
    observation = {"window": 8, "kernel": 5, "pooling": "average", "dtype": "torch.float32"}
    scorer = {"SnapKVScorer": {"observation": {"Observation": observation}, "grouping": "contiguous"}}
    assert describe(method) == {"EvictionMethod": {"scorer": scorer, "allocator": {"UniformAllocator": {}}}}


ALIKE_AND_APART: list[tuple[Any, Any]] = [
    (lambda: Plain([1, 2]), lambda: Plain([1, 3])),
    (lambda: Plain({"b": 1, "a": Slotted(2)}), lambda: Plain({"b": 1, "a": Slotted(3)})),
    (lambda: Plain(torch.arange(5000.0)), lambda: Plain(torch.arange(5000.0).flip(0))),
    (lambda: Held(torch.zeros(4)), lambda: Held(torch.zeros(2, 2))),
    (lambda: Held(torch.zeros(4)), lambda: Held(torch.zeros(4, dtype=torch.int32))),
    (lambda: Held(torch.zeros(4, dtype=torch.bfloat16)), lambda: Held(torch.zeros(4, dtype=torch.float16))),
    (lambda: Held(np.arange(5000)), lambda: Held(np.arange(5000)[::-1])),
    (lambda: Held(frozenset("abcdef")), lambda: Held(frozenset("abcde"))),
    (lambda: Held({1: "a"}), lambda: Held({"1": "a"})),
    (lambda: Held(0.0), lambda: Held(-0.0)),
    (lambda: Held(math.nan), lambda: Held("nan")),
    (lambda: Held(-math.inf), lambda: Held(math.inf)),
    (lambda: Held(torch.float32), lambda: Held(torch.float16)),
    (lambda: Held(Path("a/b")), lambda: Held(Path("a/c"))),
    (lambda: Held(Kind.ONE), lambda: Held(None)),
    (lambda: Held(keep), lambda: Held(math.sqrt)),
    (lambda: Held(torch.relu), lambda: Held(torch.nn.functional.relu)),
    (lambda: Held(functools.partial(keep, 1)), lambda: Held(functools.partial(keep, 2))),
    (lambda: Held(Slotted), lambda: Held(Plain)),
    (lambda: Held(Slotted(1).__init__), lambda: Held(Slotted(2).__init__)),
    (lambda: Derived(torch.ones(2)), lambda: Derived(torch.zeros(2))),
    (lambda: torch.nn.Parameter(torch.ones(2)), lambda: torch.nn.Parameter(torch.zeros(2))),
]


@pytest.mark.parametrize(("made", "other"), ALIKE_AND_APART)
def test_equal_values_are_described_alike_and_others_differently(made, other):
    assert canonical(describe(made()), "x") == canonical(describe(made()), "x") != canonical(describe(other()), "x")


def test_what_a_class_computes_from_its_fields_changes_nothing():
    used = Plain([1])
    before = describe(used)
    assert used.computed == [1]
    assert describe(used) == before


def described() -> str:
    """What this module describes when it is imported by its full name, as another process does."""
    from tests.running import test_described

    return canonical([describe(made()) for made, _ in test_described.ALIKE_AND_APART], "x")


def test_it_is_the_same_in_another_process():
    """Whose sets have another order."""
    program = "import sys; from tests.running.test_described import described; sys.stdout.write(described())"
    seed = str(int(os.environ.get("PYTHONHASHSEED") == "1") + 1)
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True
    )
    assert other.stdout.decode() == described()


def closure():
    number = 3
    return lambda scores: scores + number


def itself() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    "value",
    [
        closure(),
        functools.partial(closure()),
        functools.cache(closure()),
        threading.Lock(),
        torch.ones(2, device="meta"),
        torch.ones(2).to_sparse(),
        np.array([object()]),
        itself(),
        functools.reduce(lambda inner, _: [inner], range(5000), []),
        (item for item in ()),
        sys,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_lasting_description_is_refused_by_its_field(value):
    for scorer in (Plain(value), HeldScorer(value)):
        with pytest.raises(UserError) as caught:
            describe(EvictionMethod(scorer, UniformAllocator()))
        # What is nested too deeply is known of the whole method only.
        field = caught.value.field or ""
        assert_about(caught.value, field)
        assert field.startswith("method.scorer.") or (field == "method" and isinstance(value, list))


@dataclass(frozen=True, eq=False)
class HeldScorer:
    value: Any
    window: int = 8


def test_an_identity_that_json_does_not_take_is_refused_or_described():
    assert canonical({"a": Path("x"), "b": {2, 1}}, "task x") == canonical({"b": {1, 2}, "a": Path("x")}, "task x")
    for wrong in ({1: 2, "a": 3}, {(1, 2): 3}, {"a": closure()}, {"a": itself()}):
        with refused("task x"):
            canonical(wrong, "task x")


def test_a_scorer_that_cannot_be_a_key_is_refused():
    @dataclass
    class Mutable:
        window: int = 8

    @dataclass(frozen=True)
    class WithList:
        table: list[int] = field(default_factory=list)
        window: int = 8

    for scorer in (Mutable(), WithList()):
        with refused("method.scorer"):
            EvictionMethod(scorer, UniformAllocator())


PLAIN = """
import torch

from baselines.uniform import allocator
from compresskv.eviction import LayerScores


class Scorer:
    window = 8

    def __init__(self, table):
        self.table = table

    def __call__(self, layer):
        return LayerScores(self.table[: layer.length - self.window].expand(layer.kv_heads, -1))


def scorer(context, *, scale: int):
    return Scorer((torch.arange(5000) * scale % 4999).float())
"""

YAML = """
# python run.py method=plain
defaults:
  - allocator: uniform
  - _self_
name: plain
scorer:
  _target_: outside_method.plain.scorer
  scale: 7
plain:
  scorer: outside_method.plain.scorer
  allocator: baselines.uniform.allocator
"""


def test_a_plain_scorer_resumes_and_another_table_is_another_folder(on_tiny_model, tiny, tmp_path, monkeypatch):
    from evals.running import sweep

    conf = write_package(tmp_path)
    (conf.parent / "plain.py").write_text(PLAIN)
    (conf / "method" / "plain.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = [*tiny, "method=plain", "budget=64", "eval.lengths=[200]", "eval.depths=1", "eval.max_new_tokens=4"]

    def run(*overrides):
        sweep.run([job(*given, *overrides, config_dir=conf)])
        return {folder: (folder / "samples.jsonl").read_bytes() for folder in folders(tmp_path)}

    first = run()
    assert len(first) == 1
    assert run() == first
    assert len(run("method.scorer.scale=11")) == 2
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside_method"]:
        del sys.modules[name]


class Table(list):
    """Whose items are not all that it holds."""

    scale = 1.0


def test_collections_that_hold_more_than_their_items_are_described_in_full():
    scaled = Table([1, 2])
    scaled.scale = 2.0
    values = [
        [1, 2],
        Table([1, 2]),
        scaled,
        {"a": 1},
        collections.defaultdict(int, a=1),
        collections.defaultdict(float, a=1),
    ]
    assert len({json.dumps(describe(value)) for value in values}) == len(values)
    assert describe(scaled) == describe(copy.copy(scaled))
    assert describe(FrozenMapping(a=1)) == describe({"a": 1})
    with refused("method"):
        describe(...)
