"""Write a package with a method from outside this repository, and its configuration folder."""

from pathlib import Path

METHOD = '''
"""Every `stride`-th token, and more tokens in later layers."""
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from compresskv.checking import Ge
from compresskv.context import Context
from compresskv.eviction import LayerScores


@dataclass(frozen=True)
class Strided:
    stride: int
    start: str
    window: int

    def __call__(self, layer):
        past = torch.arange(layer.length - self.window)
        scores = (past % self.stride == 0).float()
        return LayerScores((scores if self.start == "first" else scores.flip(0)).expand(layer.kv_heads, -1))


@dataclass(frozen=True)
class Halves:
    """The first half of the layers gives `given` tokens each to the second."""
    given: int

    def __call__(self, scores, shape, budget):
        base, half = budget - shape.window, shape.layers // 2
        given = max(min(self.given, base, shape.past - base), 0)
        capacities = [base - given] * half + [base] * (shape.layers - 2 * half) + [base + given] * half
        return capacities[:len(scores)]


def scorer(context: Context, *, stride: Annotated[int, Ge(1)], start: Literal["first", "last"] = "first") -> Strided:
    return Strided(stride, start, context.observation.window)


def allocator(context: Context, *, given: Annotated[int, Ge(0)]) -> Halves:
    return Halves(given)
'''

YAML = """
# python run.py --config-dir=<this folder> method=strided_halves
defaults:
  - allocator: halves
  - _self_
name: strided_halves
scorer:
  _target_: outside_method.parts.scorer
  stride: 3
plain:
  scorer: outside_method.parts.scorer
  allocator: outside_method.parts.allocator
"""

ALLOCATOR = """
_target_: outside_method.parts.allocator
given: 4
"""

ENTRY_POINT = """
[compresskv.conf]
outside_method = outside_method.conf
"""


def write_package(folder: Path) -> Path:
    """Write the package `outside_method` into `folder`; returns its configuration folder."""
    package = folder / "outside_method"
    conf = package / "conf"
    (conf / "method" / "allocator").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(METHOD)
    (conf / "method" / "strided_halves.yaml").write_text(YAML)
    (conf / "method" / "allocator" / "halves.yaml").write_text(ALLOCATOR)
    return conf


def install(folder: Path) -> None:
    """Write the metadata that pip would write, so that the entry point is found if `folder` is on the path."""
    info = folder / "outside_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
