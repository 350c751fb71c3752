"""The methods of the paper's second version, on prompts whose every attention weight is a small integer.

The expected values in second_version.json were computed with the authors' released classes (`released`) and with exact
fractions (`corrected`); scores at every cut differ by far more than float32 rounds. Two further sets of rules change
one field of the protocol at a time.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.adakv import AdaKVAllocator, ContestedScorer, apportioned, rounded, winners
from baselines.headkv import HeadKVAllocator, kv_head_shares, pool_and_minimum
from baselines.snapkv import SnapKVScorer
from baselines.uniform import UniformAllocator
from compresskv.errors import NonFiniteError
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores, Observation, PromptShape
from compresskv.layer_error import LayerErrorAllocator
from compresskv.protocol import EvaluationProtocol
from compresskv.selection import refuse_nan
from compresskv.semantic_heads import SemanticHeadScorer
from tests.support.refusals import refused

from .construction import allocated, context, kept, method, past_kept, random_layers

RULES: dict[str, tuple[Any, bool]] = {
    "released": ("strided", False),
    "corrected": ("contiguous", True),
    "strided, exact": ("strided", True),
    "contiguous, rounded": ("contiguous", False),
}
"""How query heads are grouped, and whether budgets are exact."""


@dataclass(frozen=True)
class LayersGiven:
    """Past tokens of each layer."""

    capacities: tuple[int, ...]

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        return list(self.capacities[: len(scores)])


@dataclass(frozen=True)
class Prompt:
    """A prompt of which head h's window row i attends to token j of layer l by a weight modulo p, and head scores.

    `rolled`: dimensions by which each KV head's keys are rolled against the one before, to catch a wrong key head.
    """

    length: int
    window: int
    q_heads: int
    kv_heads: int
    kernel: int
    layers: int
    budget: int
    weights: Sequence[int]
    scores: Sequence[int]
    layer_budgets: Sequence[int]
    semantic: Sequence[Sequence[int]]
    rolled: int

    @property
    def shape(self) -> PromptShape:
        return PromptShape(self.layers, self.kv_heads, self.length, self.window)

    def weight(self, layer: int, head: int, row: int, token: int) -> int:
        a, b, c, d, e, p = self.weights
        mixed = a * head**2 + b * head * token + c * token**2
        return 1 + (mixed + d * row * (token + 1) + e * layer * (token + head + 1)) % p

    @property
    def head_scores(self) -> tuple[tuple[float, ...], ...]:
        a, b, c, d, p = self.scores
        heads = range(self.q_heads)
        return tuple(tuple(float((a * i + b * h + c * i * h + d) % p) for h in heads) for i in range(self.layers))

    @cached_property
    def prefills(self) -> list[LayerPrefill]:
        return [self.prefill(layer) for layer in range(self.layers)]

    def prefill(self, layer: int) -> LayerPrefill:
        size, group = self.length, self.q_heads // self.kv_heads
        keys = torch.stack([torch.eye(size).roll(self.rolled * k, dims=1) for k in range(self.kv_heads)])
        queries = torch.zeros(self.q_heads, self.window, size, dtype=torch.float64)
        for head in range(self.q_heads):
            for row in range(self.window):
                logits = [math.sqrt(size) * math.log(self.weight(layer, head, row, token)) for token in range(size)]
                queries[head, row] = torch.tensor(logits, dtype=torch.float64).roll(self.rolled * (head // group))
        return LayerPrefill(layer, queries.float(), keys, keys, scaling=1 / math.sqrt(size))

    def method(self, name: str, rules: str) -> EvictionMethod:
        grouping, exact = RULES[rules]
        observation = Observation(self.window, self.kernel)
        scorer: Any = SnapKVScorer(observation, grouping)
        semantic = SemanticHeadScorer(observation, tuple(map(tuple, self.semantic)))
        layers = None
        if name == "adacompresskv":
            scorer = ContestedScorer(semantic, scorer)
            layers = LayersGiven(tuple(budget - self.window for budget in self.layer_budgets))
        elif name == "headcompresskv":
            scorer = semantic
        by_head_scores = HeadKVAllocator(self.head_scores, 1.2, 1.0, exact, grouping)
        return EvictionMethod(scorer, AdaKVAllocator(0.2, exact, layers) if name.startswith("ada") else by_head_scores)


TABLES = json.loads((Path(__file__).parent / "second_version.json").read_text())
PROMPTS = {name: Prompt(**table["prompt"]) for name, table in TABLES.items()}
CASES = [
    (name, rules, method)
    for name, table in TABLES.items()
    for rules, expected in table.items()
    if rules != "prompt"
    for method in expected
]


@pytest.mark.parametrize(("name", "rules", "chosen"), CASES)
def test_hand_tables(name: str, rules: str, chosen: str) -> None:
    """Kept past positions, or their numbers; and, where heads compete, how many of the best scores each has."""
    prompt, expected = PROMPTS[name], TABLES[name][rules][chosen]
    made = prompt.method(chosen, rules)
    scores = [made.scorer(layer) for layer in prompt.prefills]
    if "kept" in expected:
        assert past_kept(made, prompt.prefills, prompt.budget) == expected["kept"]
    else:
        assert list(map(list, allocated(made.allocator, scores, prompt.shape, prompt.budget))) == expected["capacities"]  # type: ignore[arg-type]
    for layer, won in enumerate(expected.get("won", [])):
        budget = prompt.layer_budgets[layer] if chosen == "adacompresskv" else prompt.budget
        assert list(winners(scores[layer], budget - prompt.window)) == won


def test_headkv_real_capacities() -> None:
    """Before rounding, strided, of 29 parts."""
    prompt = PROMPTS["F1"]
    given, minimum = pool_and_minimum(prompt.budget - prompt.window, 1.2)
    shares = kv_head_shares(prompt.head_scores, 1.0, 2, "strided")
    real = [[(share * given * 6 + minimum) * 29 for share in layer] for layer in shares]
    assert real == [pytest.approx(pair) for pair in ([167, 137], [107, 161], [113, 185])]


def test_headkv_truncates_at_the_prompt() -> None:
    """One head asks for 21 of 15 past tokens. Released, six are lost; corrected, the others share them."""
    shape = PROMPTS["F3"].shape
    scores = ((2.0, 40, 5, 4, 3, 2, 6, 5), (1.0, 4, 3, 2, 1, 4, 3, 2))
    released = HeadKVAllocator(scores, 1.2, 1.0, False, "strided")
    blank = [LayerScores(torch.zeros(4, 15))] * 2
    assert released(blank, shape, 10) == [(4, 21, 7, 6), (3, 6, 5, 4)]
    assert allocated(released, blank, shape, 10) == [(4, 15, 7, 6), (3, 6, 5, 4)]
    corrected = HeadKVAllocator(scores, 1.2, 1.0, True, "contiguous")
    assert allocated(corrected, blank, shape, 10) == [(15, 7, 5, 9), (5, 5, 5, 5)]


def test_adakv_shares() -> None:
    """Released, the equal part is the uniform budget's, int(0.2 · 8) = 1, and a layer of 14 tokens keeps them all."""
    assert rounded((11, 13), 8, 0.2) == (10, 11)
    assert rounded((1, 7), 8, 0.2) == (2, 7)
    assert apportioned((15, 9), 12, 0.2) == (14, 10)
    allocator = AdaKVAllocator(0.2, False, LayersGiven((16, 1)))
    scores = [LayerScores(torch.rand(2, 14))] * 2
    assert allocator(scores, PromptShape(2, 2, 16, 2), 7)[0] == (14, 14)


# Properties.


SHAPE = PromptShape(2, 2, 80, 4)


def grouped(name: str, rule: Any, shape: PromptShape = SHAPE, group: int = 2, **parameters: Any) -> EvictionMethod:
    return method(name, context(shape, group, protocol=EvaluationProtocol(gqa_grouping=rule)), **parameters)


@pytest.mark.parametrize("name", ["adacompresskv", "headcompresskv"])
@pytest.mark.parametrize("exact", [True, False])
def test_kept_sets_of_a_layer_are_nested(name: str, exact: bool) -> None:
    shape = PromptShape(3, 3, 80, 4)
    protocol = EvaluationProtocol(gqa_grouping="contiguous" if exact else "strided", exact_budget=exact)
    for layer in kept(method(name, context(shape, 2, protocol=protocol)), random_layers(shape, 2, 5), 30):
        smallest, middle, largest = sorted(map(set, layer), key=len)
        assert smallest <= middle <= largest
        assert smallest < largest


@pytest.mark.parametrize("layers", [LayerErrorAllocator((1 / 6, 2 / 6, 3 / 6)), None])
def test_heads_that_compete_alike_share_alike(layers: LayerErrorAllocator | None) -> None:
    """AdaCompressKV with equal contest rows is CompressKV, with its layer budgets or with equal ones."""
    shape, observation = PromptShape(3, 2, 300, 4), Observation(4, 3)
    scorer = ContestedScorer(SemanticHeadScorer(observation, ((0,), (1,), (0,))), SnapKVScorer(observation))
    prompt = random_layers(shape, 1, seed=3)
    same = [replace(p, queries=p.queries[:1].repeat(2, 1, 1), keys=p.keys[:1].repeat(2, 1, 1)) for p in prompt]
    adacompresskv = EvictionMethod(scorer, AdaKVAllocator(0.2, True, layers))
    assert kept(adacompresskv, same, 90) == kept(EvictionMethod(scorer, layers or UniformAllocator()), same, 90)


@pytest.mark.parametrize(
    ("name", "selection", "allocation"),
    [
        ("snapkv", True, False),
        ("pyramidkv", True, False),
        ("headkv", True, True),
        ("adakv", True, True),
        ("adacompresskv", False, True),
        ("headcompresskv", False, True),
        ("compresskv", False, False),
        ("cake", False, False),
        ("tova", False, False),
    ],
)
def test_where_strided_grouping_applies(name: str, selection: bool, allocation: bool) -> None:
    """In the selection, in the allocation, in both or in neither; never where semantic heads select."""
    both = [grouped(name, grouping) for grouping in ("contiguous", "strided")]
    scores = [[chosen.scorer(layer) for layer in random_layers(SHAPE, 2, 1)] for chosen in both]
    assert any(not a.scores.equal(b.scores) for a, b in zip(*scores, strict=True)) is selection
    capacities = [allocated(c.allocator, s, SHAPE, 20) for c, s in zip(both, scores, strict=True)]
    assert (capacities[0] != capacities[1]) is allocation


def test_grouping_of_selection_and_allocation_can_be_set_separately() -> None:
    prompt = random_layers(SHAPE, 2, 1)
    for name in ("adakv", "headkv"):
        unmixed, ours = grouped(name, "strided", grouping="contiguous").scorer, grouped(name, "contiguous").scorer
        assert all(unmixed(layer).scores.equal(ours(layer).scores) for layer in prompt)
    contest = grouped("adakv", "contiguous", contest_grouping="strided").scorer(prompt[0])
    assert contest.contest is not None
    assert contest.contest.equal(grouped("adakv", "strided").scorer(prompt[0]).scores)
    assert contest.nbytes > LayerScores(contest.scores).nbytes


@pytest.mark.parametrize("allocator", ["adakv", "adacompresskv"])
@pytest.mark.parametrize("scorer", ["compresskv", "streaming_llm"])
def test_a_contest_between_equal_heads_is_refused(scorer: str, allocator: str) -> None:
    made = EvictionMethod(grouped(scorer, "contiguous").scorer, grouped(allocator, "contiguous").allocator)
    with refused("method.allocator"):
        kept(made, random_layers(SHAPE, 2, 1), 20)


def test_a_contest_that_is_not_a_number_is_refused() -> None:
    with refused("method.scorer", NonFiniteError):
        refuse_nan([LayerScores(torch.ones(2, 5), contest=torch.full((2, 5), math.nan))])
