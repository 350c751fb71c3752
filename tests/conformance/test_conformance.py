"""The suite that any author can run: what ships passes it, and each kind of fault fails the check that names it."""

import importlib
import re
from dataclasses import dataclass, field, replace

import pytest
import torch

from baselines.snapkv import SnapKVScorer, strided_mean
from baselines.uniform import UniformAllocator
from compresskv.eviction import Allocator, EvictionMethod, LayerScores, Observation, Scorer
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


@pytest.mark.parametrize("name", ["adacompresskv", "h2o"])  # h2o observes all queries of the prompt
def test_a_method_that_ships_passes(name):
    result = check(name, budget=BUDGET)
    assert result.passed, str(result)
    assert len(result.results) == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_that_ships_passes(name):
    assert check(name).passed


@dataclass(frozen=True)
class TooMany:
    def __call__(self, scores, shape, budget):
        return [budget - shape.window + 1] * len(scores)


@dataclass(frozen=True)
class Growing:
    """Counts the times that it was asked, and gives a layer more each time."""

    asked: list[int] = field(default_factory=list, hash=False, compare=False)

    def __call__(self, scores, shape, budget):
        self.asked.append(0)
        return [budget - shape.window - len(self.asked) % 3] * len(scores)


@dataclass(frozen=True)
class Changed:
    """SnapKV's scores, changed."""

    window: int = 8

    def __call__(self, layer):
        return self.changed(layer, SNAPKV(layer).scores)

    def changed(self, layer, scores):
        return LayerScores(scores)


class Twice(LayerScores):
    """A ranking that names the best position twice."""

    @property
    def ranking(self):
        best = self.scores.sort(descending=True, stable=True).indices
        return torch.cat([best[:, :1], best[:, :-1]], 1)


class Duplicates(Changed):
    def changed(self, layer, scores):
        return Twice(scores)


class WithoutWindow(Changed):
    """Scores the window, too, as if it were past."""

    def changed(self, layer, scores):
        return LayerScores(torch.nn.functional.pad(scores, (0, self.window)))


class NotANumber(Changed):
    def changed(self, layer, scores):
        return LayerScores(scores / 0 * 0)


class Unseeded(Changed):
    def changed(self, layer, scores):
        return LayerScores(torch.rand_like(scores))


class Strided(Changed):
    """Averages over query heads k, k + H, … as if they were those of KV head k."""

    def __call__(self, layer):
        return LayerScores(strided_mean(SNAPKV.observation.attention(layer).sum(1), layer.kv_heads))


class Float32Only(Changed):
    def __call__(self, layer):
        torch.zeros(layer.keys.shape[-1]) @ layer.keys[0, 0]
        return super().__call__(layer)


@dataclass(frozen=True)
class Remembers(Changed):
    """Adds what it scored in the prompt before."""

    seen: dict = field(default_factory=dict, hash=False, compare=False)

    def changed(self, layer, scores):
        before = self.seen.get(layer.index, torch.zeros(1, 0))[:, : scores.shape[1]]
        self.seen[layer.index] = scores
        added = torch.nn.functional.pad(before, (0, scores.shape[1] - before.shape[1]))
        return LayerScores(scores + 10 * added)


@dataclass(frozen=True)
class Counts(Changed):
    """Counts calls where it should read the layer's index."""

    calls: list[int] = field(default_factory=list, hash=False, compare=False)

    def changed(self, layer, scores):
        self.calls.append(0)
        place = (len(self.calls) - 1) % 3
        return LayerScores(scores.roll(place, -1))


@dataclass(frozen=True)
class FromOne:
    """Reads the calibration as if layers were counted from 1: the first layer has the last one's heads."""

    heads: tuple[tuple[int, ...], ...]
    window: int = 8

    def __call__(self, layer):
        return SemanticHeadScorer(Observation(), self.heads)(replace(layer, index=(layer.index - 1) % len(self.heads)))


@dataclass(frozen=True)
class Drifts(Changed):
    """A mean over all prompts so far, too small to change what is kept, in equal instances alike."""

    def changed(self, layer, scores):
        SEEN.append(scores.mean().item())
        return LayerScores(scores + 1e-6 * sum(SEEN[-40:]))


SEEN: list[float] = []


@dataclass(frozen=True)
class Company(Changed):
    """Finds a way to all queries that the prefill kept."""

    def __call__(self, layer):
        queries = (layer._whole or layer).queries.mean(1).unflatten(0, (layer.kv_heads, -1)).mean(1)
        return LayerScores((layer.keys @ queries[..., None])[:, : -self.window, 0])


class Noisy(Changed):
    def changed(self, layer, scores):
        return LayerScores(scores + 1e-7 * torch.rand_like(scores))


class ByIdentity:
    """No dataclass: made twice, it is another one."""

    window = 8

    def __call__(self, layer):
        return SNAPKV(layer)


def of(scorer: Scorer = SNAPKV, allocator: Allocator | None = None):
    return lambda context: EvictionMethod(scorer, allocator or UniformAllocator())


BROKEN = {
    "too many tokens": (of(allocator=TooMany()), "budget exact"),
    "duplicates": (of(Duplicates()), "positions sorted, unique, in range"),
    "drops the window": (of(WithoutWindow()), "window kept"),
    "scores the window": (of(WithoutWindow()), "scores"),
    "NaN": (of(NotANumber()), "scores"),
    "keeps state between samples": (
        lambda _: EvictionMethod(Remembers(), UniformAllocator()),
        "no leak between prompts",
    ),
    "drifts from prompt to prompt": (of(Drifts()), "no leak between prompts"),
    "looks at what is kept for others": (of(Company()), "alone = beside other settings"),
    "noise": (of(Noisy()), "determinism"),
    "counts layers itself": (lambda _: EvictionMethod(Counts(), UniformAllocator()), "layer index"),
    "counts layers from one": (
        lambda context: EvictionMethod(FromOne(context.calibration.top_heads("semantic", 1)), UniformAllocator()),
        "layer index",
    ),
    "strided query heads": (of(Strided()), "GQA grouping"),
    "an allocator that changes its mind": (
        lambda _: EvictionMethod(SNAPKV, Growing()),
        "shared = in-layer eviction",
    ),
    "unseeded": (of(Unseeded()), "determinism"),
    "compared by identity": (lambda _: EvictionMethod(ByIdentity(), UniformAllocator()), "equal configurations"),
    "float32 only": (of(Float32Only()), "dtype"),
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
    """So that the one that does is to be believed."""
    make, expected = BROKEN[fault]
    others = {"dtype"} if fault == "too many tokens" else set()  # which has a budget, too
    assert set(check(make, budget=BUDGET).failed) == {expected} | others


def test_an_error_of_the_method_is_a_line_of_the_report():
    class Raises(Changed):
        def changed(self, layer, scores):
            raise KeyError("no such head")

    result = check(of(Raises()), budget=BUDGET)
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


def test_other_code_calls_it():
    with refused("--config-dir", value="nowhere"):
        check("snapkv", config_dir="nowhere")


def test_the_method_of_the_documentation_conforms(tmp_path, monkeypatch):
    """Its scorer in a module of its own, as the page has it, and its allocator."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text()
    first, second, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "key_spread_of_the_page.py").write_text(f"{first}\n\n{second}")
    monkeypatch.syspath_prepend(str(tmp_path))
    page = importlib.import_module("key_spread_of_the_page")
    result = check(lambda context: EvictionMethod(page.scorer(context, power=2.0), page.FirstLayersAllocator(4)))
    assert result.passed, str(result)
