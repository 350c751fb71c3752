"""Imports run one way, those for type checkers and those within functions included."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.support.command import ROOT

PACKAGES = ("compresskv", "baselines", "evals", "hydra_plugins")
"""Each imports none of those after it."""

LAYERS = ("evals.results", "evals.job", "evals.compose", "evals.running", "evals.launch")
"""Within evals, the path of a job: each imports none of those after it."""

SHOWN_BY = "show"
"""The method by which an evaluation is asked for its tables when a run has ended: it alone looks up, to the report."""


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_bytes())
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """What the source below `node` imports of these packages, by module."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) if name == SHOWN_BY:
                continue
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                for alias in aliases:
                    whole = f"{module}.{alias.name}"
                    yield whole if whole in modules() else module
        yield from imported(child)


@cache
def graph() -> dict[str, set[str]]:
    return {name: set(imported(tree)) & set(modules()) - {name} for name, tree in modules().items()}


def test_no_circle():
    assert list(TopologicalSorter(graph()).static_order())  # raises CycleError, which names the modules


def test_no_circle_of_packages():
    """The packages within evals import each other in one direction, too."""
    package = lambda name: ".".join(name.split(".")[:2])  # noqa: E731
    above: dict[str, set[str]] = {}
    for name, targets in graph().items():
        if name.startswith("evals."):
            others = {package(target) for target in targets if target.startswith("evals.")}
            above.setdefault(package(name), set()).update(others - {package(name)})
    assert list(TopologicalSorter(above).static_order())


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


@pytest.mark.parametrize("order", [PACKAGES, LAYERS])
def test_one_direction(order):
    for place, part in enumerate(order):
        for name, targets in graph().items():
            if within(name, part):
                above = {target for target in targets if any(within(target, later) for later in order[place + 1 :])}
                assert not above, f"{name} imports {above}"


def test_the_types_of_a_run_import_no_torch():
    tree = modules()["evals.job"]
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {"torch", "hydra", "omegaconf"} & {ast.unparse(node).split()[1].split(".")[0] for node in top}
