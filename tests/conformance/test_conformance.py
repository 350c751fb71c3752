"""Methods of the package pass all conformance checks, and each kind of fault fails the check that names it."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch

from baselines.snapkv import SnapKVScorer, strided_mean
from baselines.uniform import UniformAllocator
from compresskv.eviction import Allocator, EvictionMethod, LayerPrefill, LayerScores, Observation, Scorer
from compresskv.semantic_heads import SemanticHeadScorer
from evals.conformance import __main__ as command
from evals.conformance import check
from evals.conformance.checks import problem
from evals.conformance.subject import Subject
from tests.methods.construction import METHODS
from tests.support.command import ROOT
from tests.support.refusals import refused
from tests.support.writers import WRITERS

BUDGET = 48
SNAPKV = SnapKVScorer(Observation())


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("adacompresskv", BUDGET),
        ("h2o", BUDGET),  # it observes all queries of the prompt
        *(pytest.param(name, 256, marks=pytest.mark.slow) for name in METHODS),
    ],
)
def test_a_method_that_ships_passes(name, budget):
    result = check(name, budget=budget)
    assert result.passed, str(result)
    assert len(result.results) == 15


@dataclass(frozen=True)
class Answers:
    """An allocator that gives every layer seen so far `capacity(budget of the past)`."""

    capacity: Callable[[int], int]

    def __call__(self, scores, shape, budget):
        return [self.capacity(budget - shape.window)] * len(scores)


@dataclass(frozen=True)
class Changed:
    """SnapKV's scores, changed."""

    change: Callable[[LayerPrefill, torch.Tensor], Any]
    window: int = 8

    def __call__(self, layer):
        scores = self.change(layer, SNAPKV(layer).scores)
        return scores if isinstance(scores, LayerScores) else LayerScores(scores)


class Twice(LayerScores):
    """A ranking that names the best position twice."""

    @property
    def ranking(self):
        best = self.scores.sort(descending=True, stable=True).indices
        return torch.cat([best[:, :1], best[:, :-1]], 1)


class ByIdentity:
    """Not a dataclass, so that two instances are unequal."""

    window = 8

    def __call__(self, layer):
        return SNAPKV(layer)


def pad(scores, columns):
    return torch.nn.functional.pad(scores, (0, columns))


def strided(layer, scores):
    """Averages over query heads k, k + H, … instead of those of KV head k."""
    return strided_mean(SNAPKV.observation.attention(layer).sum(1), layer.kv_heads)


def float32_only(layer, scores):
    torch.zeros(layer.keys.shape[-1]) @ layer.keys[0, 0]
    return scores


def company(layer, scores):
    """Reads all queries of the prefill through a private attribute."""
    queries = (layer._whole or layer).queries.mean(1).unflatten(0, (layer.kv_heads, -1)).mean(1)
    return (layer.keys @ queries[..., None])[:, :-8, 0]


def remembers():
    """Adds the scores of the previous prompt."""
    seen: dict[int, torch.Tensor] = {}

    def change(layer, scores):
        before = seen.get(layer.index, torch.zeros(1, 0))[:, : scores.shape[1]]
        seen[layer.index] = scores
        return scores + 10 * pad(before, scores.shape[1] - before.shape[1])

    return Changed(change)


def counts():
    """Counts calls where it should read the layer's index."""
    calls = count()
    return Changed(lambda layer, scores: scores.roll(next(calls) % 3, -1))


def growing():
    """Gives other numbers of tokens in later calls."""
    asked = count(1)
    return Answers(lambda past: past - next(asked) % 3)


def from_one(context):
    """Reads the calibration with layers counted from 1: the first layer has the heads of the last one."""
    semantic = SemanticHeadScorer(Observation(), context.calibration.top_heads("semantic", 1))
    layers = len(semantic.heads)
    return Changed(lambda layer, scores: semantic(replace(layer, index=(layer.index - 1) % layers)))


SEEN: list[float] = []


def drifts(layer, scores):
    """Adds a mean over all prompts so far, also of other instances; it is too small to change the kept tokens."""
    SEEN.append(scores.mean().item())
    return scores + 1e-6 * sum(SEEN[-40:])


def of(scorer: Scorer = SNAPKV, allocator: Allocator | None = None):
    return lambda context: EvictionMethod(scorer, allocator or UniformAllocator())


def changing(change):
    return of(Changed(change))


BROKEN = {
    "too many tokens": (of(allocator=Answers(lambda past: past + 1)), "budget exact"),
    "duplicates": (changing(lambda layer, scores: Twice(scores)), "positions sorted, unique, in range"),
    "drops the window": (changing(lambda layer, scores: pad(scores, 8)), "window kept"),
    "scores the window": (changing(lambda layer, scores: pad(scores, 8)), "scores"),
    "NaN": (changing(lambda layer, scores: scores / 0 * 0), "scores"),
    "keeps state between samples": (lambda _: of(remembers())(_), "no leak between prompts"),
    "drifts from prompt to prompt": (changing(drifts), "no leak between prompts"),
    "looks at what is kept for others": (changing(company), "alone = beside other settings"),
    "noise": (changing(lambda layer, scores: scores + 1e-7 * torch.rand_like(scores)), "determinism"),
    "counts layers itself": (lambda _: of(counts())(_), "layer index"),
    "counts layers from one": (lambda context: of(from_one(context))(context), "layer index"),
    "strided query heads": (changing(strided), "GQA grouping"),
    "an allocator that changes its mind": (lambda _: of(allocator=growing())(_), "shared = in-layer eviction"),
    "unseeded": (changing(lambda layer, scores: torch.rand_like(scores)), "determinism"),
    "compared by identity": (lambda _: of(ByIdentity())(_), "equal configurations"),
    "float32 only": (changing(float32_only), "dtype"),
}
BROKEN |= {
    f"writes: {fault}": (lambda _, method=method: method, "writes to nothing") for fault, method in WRITERS.items()
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_fails_its_check(fault):
    make, expected = BROKEN[fault]
    sentence = problem(expected, Subject(make, BUDGET))
    assert sentence
    assert "\n" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["too many tokens", "strided query heads", "compared by identity", "float32 only"])
def test_other_checks_do_not_mind_it(fault):
    """Only the check that names the fault fails."""
    make, expected = BROKEN[fault]
    others = {"dtype"} if fault == "too many tokens" else set()  # which has a budget, too
    assert set(check(make, budget=BUDGET).failed) == {expected} | others


def test_an_error_of_the_method_is_a_line_of_the_report():
    result = check(changing(lambda layer, scores: {}["no such head"]), budget=BUDGET)
    assert not result.passed
    assert "KeyError" in str(result)
    assert "test_conformance.py, line" in str(result)


def test_the_command(capsys):
    assert command.main(["method=snapkv", "budget=20", "method/allocator=pyramidkv"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["pass"] * 15
    assert command.main(["method=snapkv", "budget=40", "protocol=released"]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed.startswith("FAIL  GQA grouping")
    assert failed.endswith("KV head k has the query heads k·G to k·G + G − 1, here G = 2")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["method=snapkvv"], "method"),
        (["budget=3"], "method"),
        (["method=full"], "method"),
        (["method=snapkv", "budget=8"], "budget"),
        (["method=cake", "method.scorer.gama=1"], "method.scorer.gama"),
        (["method=cake", "method.scorer.gamma=x"], "method.scorer.gamma"),
        (["method=cake", "--config-dir", "nowhere"], "--config-dir"),
    ],
)
def test_mistakes_are_sentences(words, field):
    with refused(field):
        command.main(words)
    with refused("--config-dir", value="nowhere"):  # other code calls it
        check("snapkv", config_dir="nowhere")


def test_the_method_of_the_documentation_conforms(tmp_path, monkeypatch):
    """The scorer and the allocator of the page, in a module."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text()
    first, second, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "key_spread_of_the_page.py").write_text(f"{first}\n\n{second}")
    monkeypatch.syspath_prepend(str(tmp_path))
    page = importlib.import_module("key_spread_of_the_page")
    result = check(lambda context: EvictionMethod(page.scorer(context, power=2.0), page.FirstLayersAllocator(4)))
    assert result.passed, str(result)
