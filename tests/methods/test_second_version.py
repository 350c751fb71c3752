"""The methods of the paper's second version, on prompts whose every attention weight is a small integer.

Expected values were computed with the authors' released classes (protocol `released`) and with exact fractions
(`corrected`); scores at every cut differ by far more than float32 rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from baselines.adakv import AdaKVAllocator, ContestedScorer, rounded, winners
from baselines.adakv import apportioned as adakv_apportioned
from baselines.headkv import HeadKVAllocator, kv_head_shares, pool_and_minimum
from baselines.snapkv import Grouping, SnapKVScorer
from baselines.uniform import UniformAllocator
from compresskv.errors import NonFiniteError
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores, Observation, PromptShape
from compresskv.layer_error import LayerErrorAllocator
from compresskv.protocol import EvaluationProtocol
from compresskv.selection import refuse_nan
from compresskv.semantic_heads import SemanticHeadScorer
from tests.support.refusals import refused

from .construction import allocated, context, kept, method, past_kept, random_layers

STRIDED = ("strided", False)
CONTIGUOUS = ("contiguous", True)
Rules = tuple[Grouping, bool]
"""How query heads are grouped, and whether budgets are exact: `released` and `corrected`."""


@dataclass(frozen=True)
class LayersGiven:
    """Past tokens of each layer."""

    capacities: tuple[int, ...]

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[int]:
        return list(self.capacities[: len(scores)])


@dataclass(frozen=True)
class Fixture:
    """A prompt of which head h's window row i attends to token j of layer l by a weight modulo p, and head scores."""

    length: int
    window: int
    q_heads: int
    kv_heads: int
    kernel: int
    layers: int
    budget: int
    weights: tuple[int, int, int, int, int, int]
    scores: tuple[int, int, int, int, int]
    layer_budgets: tuple[int, ...]
    semantic: tuple[tuple[int, ...], ...]
    rolled: int = 0
    """Dimensions by which each KV head's keys are rolled against the one before, to catch a wrong key head."""

    @property
    def shape(self) -> PromptShape:
        return PromptShape(self.layers, self.kv_heads, self.length, self.window)

    @property
    def observation(self) -> Observation:
        return Observation(self.window, self.kernel)

    def weight(self, layer: int, head: int, row: int, token: int) -> int:
        a, b, c, d, e, p = self.weights
        mixed = a * head**2 + b * head * token + c * token**2
        return 1 + (mixed + d * row * (token + 1) + e * layer * (token + head + 1)) % p

    @property
    def head_scores(self) -> tuple[tuple[float, ...], ...]:
        s0, s1, s2, s3, s4 = self.scores
        return tuple(
            tuple(float((s0 * layer + s1 * head + s2 * layer * head + s3) % s4) for head in range(self.q_heads))
            for layer in range(self.layers)
        )

    def prefill(self, layer: int) -> LayerPrefill:
        size = self.length
        group = self.q_heads // self.kv_heads
        keys = torch.stack([torch.eye(size).roll(self.rolled * k, dims=1) for k in range(self.kv_heads)])
        queries = torch.zeros(self.q_heads, self.window, size, dtype=torch.float64)
        for head in range(self.q_heads):
            for row in range(self.window):
                logits = [math.sqrt(size) * math.log(self.weight(layer, head, row, token)) for token in range(size)]
                turned = torch.tensor(logits, dtype=torch.float64).roll(self.rolled * (head // group))
                queries[head, row] = turned
        return LayerPrefill(layer, queries.float(), keys, keys, scaling=1 / math.sqrt(size))

    @cache  # noqa: B019
    def prefills(self) -> list[LayerPrefill]:
        return [self.prefill(layer) for layer in range(self.layers)]

    def snapkv(self, grouping: Grouping) -> SnapKVScorer:
        return SnapKVScorer(self.observation, grouping)

    def adakv(self, rules: Rules) -> EvictionMethod:
        return EvictionMethod(self.snapkv(rules[0]), AdaKVAllocator(0.2, rules[1]))

    def headkv(self, rules: Rules) -> EvictionMethod:
        return EvictionMethod(self.snapkv(rules[0]), self.by_head_scores(rules))

    def by_head_scores(self, rules: Rules) -> HeadKVAllocator:
        return HeadKVAllocator(self.head_scores, 1.2, 1.0, rules[1], rules[0])

    def headcompresskv(self, rules: Rules) -> EvictionMethod:
        return EvictionMethod(SemanticHeadScorer(self.observation, self.semantic), self.by_head_scores(rules))

    def adacompresskv(self, rules: Rules) -> EvictionMethod:
        ranking = SemanticHeadScorer(self.observation, self.semantic)
        layers = LayersGiven(tuple(budget - self.window for budget in self.layer_budgets))
        scorer = ContestedScorer(ranking, self.snapkv(rules[0]))
        return EvictionMethod(scorer, AdaKVAllocator(0.2, rules[1], layers))

    def capacities(self, chosen: EvictionMethod) -> list[tuple[int, ...]]:
        scores = [chosen.scorer(layer) for layer in self.prefills()]
        return allocated(chosen.allocator, scores, self.shape, self.budget)  # type: ignore[return-value]


F1 = Fixture(
    16, 2, 8, 2, 3, 3, 7, (8, 5, 3, 12, 11, 23), (9, 7, 9, 4, 11), (10, 7, 4), ((0, 3), (1, 4), (2, 5))
)  # fmt: skip
F2 = Fixture(
    24, 4, 14, 2, 5, 2, 12, (1, 8, 11, 11, 11, 31), (7, 7, 7, 4, 13), (16, 8), ((4, 13, 8, 3), (8, 3, 12, 7)), rolled=3
)
F3 = Fixture(18, 3, 8, 4, 5, 2, 10, (12, 5, 12, 3, 2, 31), (1, 2, 1, 5, 11), (8, 12), ((5, 0, 3), (6, 1, 4)))
FIXTURES = {"F1": F1, "F2": F2, "F3": F3}


def sets(text: str) -> list[list[int]]:
    """ "1 2 / 3" as positions of each KV head."""
    return [[int(word) for word in part.split()] for part in text.split("/")]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def test_the_formula_of_the_prompts() -> None:
    def row(fixture: Fixture, layer: int, head: int, row: int) -> list[int]:
        return [fixture.weight(layer, head, row, token) for token in range(8)]

    assert row(F1, 0, 0, 0) == [1, 4, 13, 5, 3, 7, 17, 10]
    assert row(F1, 1, 5, 1) == [3, 8, 19, 13, 13, 19, 8, 3]
    assert row(F2, 0, 0, 0) == [1, 12, 14, 7, 22, 28, 25, 13]
    assert row(F3, 1, 5, 1) == [6, 17, 21, 18, 8, 22, 29, 29]
    sums = {name: [sum(layer) for layer in fixture.head_scores] for name, fixture in FIXTURES.items()}
    assert sums == {"F1": [41, 35, 40], "F2": [82, 89], "F3": [41, 44]}
    assert [pool_and_minimum(f.budget - f.window, 1.2) for f in FIXTURES.values()] == [(4, 1), (6, 2), (5, 2)]


def test_the_prompts_attend_by_their_weights() -> None:
    """Rolled keys too."""
    for fixture in FIXTURES.values():
        attention = fixture.prefill(1).window_attention(fixture.window)
        for head in range(fixture.q_heads):
            seen = fixture.length - fixture.window + 1
            weights = torch.tensor([float(fixture.weight(1, head, 0, token)) for token in range(seen)])
            torch.testing.assert_close(attention[head, 0, :seen], weights / weights.sum())


ADAKV = [
    ("F1", 0, "6,4", "6,4", "2 3 4 10 11 12 / 1 2 5 12", "5,5", "5,5", "1 4 5 10 11 / 1 2 3 11 12"),
    ("F1", 1, "7,3", "7,3", "1 2 7 8 10 11 12 / 3 4 12", "5,5", "5,5", "1 2 3 8 12 / 1 8 10 11 12"),
    ("F1", 2, "5,5", "5,5", "1 4 5 9 11 / 1 2 10 11 12", "4,6", "4,6", "1 2 3 12 / 4 5 6 9 10 11"),
    (
        "F2", 0, "9,7", "8,7", "7 11 12 13 14 15 16 17 / 2 3 4 11 12 13 14",
        "10,6", "10,6", "4 5 6 7 8 13 14 15 16 17 / 2 11 12 13 14 15",
    ),
    (
        "F2", 1, "6,10", "6,9", "8 9 10 15 16 17 / 2 3 5 6 13 14 15 16 17",
        "7,9", "7,9", "2 12 13 14 15 16 17 / 5 6 7 8 9 14 15 16 17",
    ),
    (
        "F3", 0, "11,4,6,7", "10,4,6,7",
        "2 3 4 5 6 7 8 9 10 12 / 2 3 4 12 / 7 8 9 10 11 12 / 2 3 4 5 6 7 9",
        "7,6,5,10", "7,6,6,9",
        "3 4 5 6 7 8 12 / 6 7 8 9 10 12 / 2 3 4 5 6 12 / 3 5 6 7 8 9 10 11 12",
    ),
    (
        "F3", 1, "5,9,6,8", "5,8,6,7",
        "2 3 10 11 12 / 4 5 6 7 8 9 10 11 / 2 3 4 5 11 12 / 2 4 6 7 8 9 10",
        "6,5,9,8", "6,5,9,8",
        "7 8 9 10 11 12 / 2 3 6 7 9 / 2 3 4 5 6 7 8 9 10 / 4 5 6 7 9 10 11 12",
    ),
]  # fmt: skip
"""Fixture and layer; u, capacities and past positions, released and corrected."""


@pytest.mark.parametrize(("name", "layer", "won", "counts", "tokens", "won_ours", "counts_ours", "tokens_ours"), ADAKV)
def test_adakv(
    name: str, layer: int, won: str, counts: str, tokens: str, won_ours: str, counts_ours: str, tokens_ours: str
) -> None:
    fixture = FIXTURES[name]
    base = fixture.budget - fixture.window
    for rules, heads_won, capacities, positions in [
        (STRIDED, won, counts, tokens),
        (CONTIGUOUS, won_ours, counts_ours, tokens_ours),
    ]:
        chosen = fixture.adakv(rules)
        assert winners(chosen.scorer(fixture.prefills()[layer]), base) == numbers(heads_won)
        assert fixture.capacities(chosen)[layer] == numbers(capacities)
        assert past_kept(chosen, fixture.prefills(), fixture.budget)[layer] == sets(positions)


HEADKV = [
    ("F1", 0, "6,5", "2 3 4 10 11 12 / 1 2 4 5 12", "4,7", "4 5 10 11 / 1 2 3 4 5 11 12"),
    ("F1", 1, "4,6", "1 8 10 12 / 3 4 5 7 11 12", "4,5", "2 3 8 12 / 1 8 10 11 12"),
    ("F1", 2, "4,6", "1 4 5 9 / 1 2 8 10 11 12", "5,5", "1 2 3 7 12 / 4 5 9 10 11"),
    (
        "F2", 0, "9,7", "7 8 11 12 13 14 15 16 17 / 2 3 4 11 12 13 14",
        "8,7", "4 5 6 7 13 14 15 16 / 2 10 11 12 13 14 15",
    ),
    (
        "F2", 1, "8,9", "2 4 8 9 10 15 16 17 / 2 3 5 6 13 14 15 16 17",
        "7,10", "2 12 13 14 15 16 17 / 2 5 6 7 8 9 14 15 16 17",
    ),
    (
        "F3", 0, "5,7,9,6", "3 4 5 6 8 / 2 3 4 5 6 8 12 / 2 6 7 8 9 10 11 12 13 / 2 3 5 6 7 9",
        "8,6,5,9", "3 4 5 6 7 8 9 12 / 6 7 8 9 10 12 / 2 3 4 5 6 / 3 5 6 7 8 9 10 11 12",
    ),
    (
        "F3", 1, "8,11,3,6", "2 3 4 7 9 10 11 12 / 2 3 4 5 6 7 8 9 10 11 12 / 2 3 5 / 2 4 6 7 8 9",
        "9,4,10,5", "2 3 4 7 8 9 10 11 12 / 2 3 6 7 / 2 3 4 5 6 7 8 9 10 12 / 4 5 6 11 12",
    ),
]  # fmt: skip
"""Fixture and layer; capacities and past positions, released and corrected."""


@pytest.mark.parametrize(("name", "layer", "counts", "tokens", "counts_ours", "tokens_ours"), HEADKV)
def test_headkv(name: str, layer: int, counts: str, tokens: str, counts_ours: str, tokens_ours: str) -> None:
    fixture = FIXTURES[name]
    for rules, capacities, positions in [(STRIDED, counts, tokens), (CONTIGUOUS, counts_ours, tokens_ours)]:
        chosen = fixture.headkv(rules)
        assert fixture.capacities(chosen)[layer] == numbers(capacities)
        assert past_kept(chosen, fixture.prefills(), fixture.budget)[layer] == sets(positions)


def test_totals() -> None:
    """Released, a few tokens are lost or added; corrected, none."""
    totals = {
        name: [sum(map(sum, f.capacities(f.headkv(rules)))) for rules in (STRIDED, CONTIGUOUS)]
        for name, f in FIXTURES.items()
    }
    assert totals == {"F1": [31, 30], "F2": [33, 32], "F3": [55, 56]}
    by_layer = {
        name: [list(map(sum, f.capacities(f.adakv(rules)))) for rules in (STRIDED, CONTIGUOUS)]
        for name, f in FIXTURES.items()
    }
    assert by_layer["F2"] == [[15, 15], [16, 16]]
    assert by_layer["F3"] == [[27, 26], [28, 28]]


def test_headkv_real_capacities() -> None:
    """Before rounding, strided, of 29 parts."""
    given, minimum = pool_and_minimum(F1.budget - F1.window, 1.2)
    shares = kv_head_shares(F1.head_scores, 1.0, 2, "strided")
    real = [[(share * given * 6 + minimum) * 29 for share in layer] for layer in shares]
    assert real == [pytest.approx(pair) for pair in ([167, 137], [107, 161], [113, 185])]


@pytest.mark.parametrize(
    ("chosen", "rules", "expected"),
    [
        ("adakv", ("strided", True), {"F2": "9,7 6,10", "F3": "10,5,6,7 5,9,6,8"}),
        ("adakv", ("contiguous", False), {"F2": "9,6 7,8", "F3": "7,6,5,9 6,5,8,7"}),
        ("headkv", ("strided", True), {"F1": "6,5 4,5 4,6", "F2": "9,6 8,9", "F3": "5,7,9,6 8,11,4,6"}),
        ("headkv", ("contiguous", False), {"F1": "4,7 4,5 5,6"}),
    ],
)
def test_grouping_and_exact_budget_alone(chosen: str, rules: Rules, expected: dict[str, str]) -> None:
    """The two fields of the protocol, one at a time."""
    for name, capacities in expected.items():
        fixture = FIXTURES[name]
        made = fixture.adakv(rules) if chosen == "adakv" else fixture.headkv(rules)
        assert fixture.capacities(made) == [numbers(layer) for layer in capacities.split()]


def test_headkv_truncates_at_the_prompt() -> None:
    """F4: one head asks for 21 of 15 past tokens. Released, six are lost; corrected, the others share them."""
    scores = ((2.0, 40, 5, 4, 3, 2, 6, 5), (1.0, 4, 3, 2, 1, 4, 3, 2))
    released = HeadKVAllocator(scores, 1.2, 1.0, False, "strided")
    blank = [LayerScores(torch.zeros(4, 15))] * 2
    assert released(blank, F3.shape, 10) == [(4, 21, 7, 6), (3, 6, 5, 4)]
    assert allocated(released, blank, F3.shape, 10) == [(4, 15, 7, 6), (3, 6, 5, 4)]
    corrected = HeadKVAllocator(scores, 1.2, 1.0, True, "contiguous")
    assert allocated(corrected, blank, F3.shape, 10) == [(15, 7, 5, 9), (5, 5, 5, 5)]


COMPRESSKV = [
    ("F1", 0, "5 10 11 9 12 6 8 1 7 3", "6,5", "4,7", "8,8", "7,7", "9,7", "9,7"),
    ("F1", 1, "7 12 8 6 11 1 10 3 9 2", "4,6", "4,5", "7,3", "7,3", "5,5", "5,5"),
    ("F1", 2, "11 4 10 2 3 9 1 12 5 8", "4,6", "5,5", "2,2", "3,3", "2,2", "2,2"),
    ("F2", 0, "14 13 15 16 17 5 12 6 7 4 2 3 11 8 9 10", "9,7", "8,7", "11,13", "10,11", "15,9", "14,10"),
    ("F2", 1, "17 16 9 15 2 8 6 7 10 3 14", "8,9", "7,10", "1,7", "2,7", "2,6", "2,6"),
    ("F3", 0, "5 6 7 9 3 12 4 2 8 10 11", "5,7,9,6", "8,6,5,9", "7,2,6,5", "7,3,6,5", "7,2,4,7", "7,3,4,6"),
    (
        "F3", 1, "10 7 6 11 4 12 5 9 8 3 2", "8,11,3,6", "9,4,10,5",
        "7,11,9,9", "7,10,8,8", "6,10,10,10", "6,10,10,10",
    ),
]  # fmt: skip
"""Fixture and layer; the ranking; HeadCompressKV's capacities; AdaCompressKV's u and capacities; each released and
corrected."""


@pytest.mark.parametrize(("name", "layer", "ranking", "counts", "counts_ours"), [row[:5] for row in COMPRESSKV])
def test_headcompresskv(name: str, layer: int, ranking: str, counts: str, counts_ours: str) -> None:
    fixture = FIXTURES[name]
    order = [int(token) for token in ranking.split()]
    for rules, text in [(STRIDED, counts), (CONTIGUOUS, counts_ours)]:
        chosen = fixture.headcompresskv(rules)
        assert fixture.capacities(chosen)[layer] == numbers(text)
        assert past_kept(chosen, fixture.prefills(), fixture.budget)[layer] == [
            sorted(order[:capacity]) for capacity in numbers(text)
        ]


@pytest.mark.parametrize(
    ("name", "layer", "ranking", "won", "counts", "won_ours", "counts_ours"), [row[:3] + row[5:] for row in COMPRESSKV]
)
def test_adacompresskv(
    name: str, layer: int, ranking: str, won: str, counts: str, won_ours: str, counts_ours: str
) -> None:
    fixture = FIXTURES[name]
    budget = fixture.layer_budgets[layer] - fixture.window
    order = [int(token) for token in ranking.split()]
    for rules, heads_won, text in [(STRIDED, won, counts), (CONTIGUOUS, won_ours, counts_ours)]:
        chosen = fixture.adacompresskv(rules)
        assert winners(chosen.scorer(fixture.prefills()[layer]), budget) == numbers(heads_won)
        assert fixture.capacities(chosen)[layer] == numbers(text)
        assert past_kept(chosen, fixture.prefills(), fixture.budget)[layer] == [
            sorted(order[:capacity]) for capacity in numbers(text)
        ]


def test_adacompresskv_layer_that_cannot_use_its_budget() -> None:
    """Released, it keeps its whole prompt, and what it cannot use is lost."""
    allocator = AdaKVAllocator(0.2, False, LayersGiven((16, 1)))
    scores = [LayerScores(torch.rand(2, 14))] * 2
    assert allocator(scores, replace(F1.shape, layers=2), 7)[0] == (14, 14)


# Properties.


@pytest.mark.parametrize("name", ["adacompresskv", "headcompresskv"])
@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_kept_sets_of_a_layer_are_nested(name: str, protocol: str) -> None:
    shape = PromptShape(3, 3, 80, 4)
    released = EvaluationProtocol(name="released", gqa_grouping="strided", exact_budget=False)
    where = context(shape, 2, protocol=released if protocol == "released" else None)
    for layer in kept(method(name, where), random_layers(shape, 2, 5), 30):
        smallest, middle, largest = sorted(map(set, layer), key=len)
        assert smallest <= middle <= largest
        assert smallest < largest


@pytest.mark.parametrize("layers", [LayerErrorAllocator((1 / 6, 2 / 6, 3 / 6)), None])
def test_heads_that_compete_alike_share_alike(layers: LayerErrorAllocator | None) -> None:
    """AdaCompressKV with equal contest rows is CompressKV, with its layer budgets or with equal ones."""
    shape = PromptShape(3, 2, 300, 4)
    observation = Observation(4, 3)
    scorer = ContestedScorer(SemanticHeadScorer(observation, ((0,), (1,), (0,))), SnapKVScorer(observation))
    prompt = random_layers(shape, 1, seed=3)
    same = [replace(p, queries=p.queries[:1].repeat(2, 1, 1), keys=p.keys[:1].repeat(2, 1, 1)) for p in prompt]
    adacompresskv = EvictionMethod(scorer, AdaKVAllocator(0.2, True, layers))
    compresskv = EvictionMethod(scorer, layers or UniformAllocator())
    assert kept(adacompresskv, same, 90) == kept(compresskv, same, 90)


@pytest.mark.parametrize("name", ["adakv", "headkv", "adacompresskv", "headcompresskv", "snapkv"])
def test_one_query_head_per_kv_head_needs_no_grouping(name: str) -> None:
    shape = PromptShape(2, 3, 60, 4)
    prompt = random_layers(shape, 1, 11)
    strided = EvaluationProtocol(gqa_grouping="strided")
    expected = kept(method(name, context(shape, 1)), prompt, 20)
    assert kept(method(name, context(shape, 1, protocol=strided)), prompt, 20) == expected


@pytest.mark.parametrize("name", ["adakv", "snapkv"])
def test_the_order_of_a_groups_query_heads_does_not_matter(name: str) -> None:
    """Contiguous; strided it does, since most of a group read other keys."""
    shape = PromptShape(1, 2, 60, 4)
    (layer,) = random_layers(shape, 2, 3)
    swapped = replace(layer, queries=layer.queries[[1, 0, 2, 3]])
    for grouping, differs in (("contiguous", False), ("strided", True)):
        chosen = method(name, context(shape, 2, protocol=EvaluationProtocol(gqa_grouping=grouping)))  # type: ignore[arg-type]
        assert (kept(chosen, [layer], 20) != kept(chosen, [swapped], 20)) is differs


# Protocol and parameters.


@pytest.mark.parametrize(
    ("name", "selection", "allocation"),
    [
        ("snapkv", True, False),
        ("headkv", True, True),
        ("adakv", True, True),
        ("adacompresskv", False, True),
        ("headcompresskv", False, True),
        ("compresskv", False, False),
        ("cake", False, False),
    ],
)
def test_where_strided_grouping_applies(name: str, selection: bool, allocation: bool) -> None:
    """In the selection, in the allocation, in both or in neither; never where semantic heads select."""
    shape = PromptShape(2, 2, 80, 4)
    prompt = random_layers(shape, 2, 1)
    ours, strided = (
        method(name, context(shape, 2, protocol=EvaluationProtocol(gqa_grouping=grouping)))  # type: ignore[arg-type]
        for grouping in ("contiguous", "strided")
    )
    scores = [[chosen.scorer(layer) for layer in prompt] for chosen in (ours, strided)]
    assert any(not a.scores.equal(b.scores) for a, b in zip(*scores, strict=True)) is selection
    capacities = [allocated(c.allocator, s, shape, 20) for c, s in zip((ours, strided), scores, strict=True)]
    assert (capacities[0] != capacities[1]) is allocation


def test_grouping_of_selection_and_allocation_can_be_set_apart() -> None:
    """For the part of a gain that un-mixing the groups has."""
    shape = PromptShape(2, 2, 80, 4)
    prompt = random_layers(shape, 2, 1)
    mixed = context(shape, 2, protocol=EvaluationProtocol(gqa_grouping="strided"))
    ours = context(shape, 2)
    for name, parameter in (("adakv", "grouping"), ("headkv", "grouping")):
        unmixed = EvictionMethod(method(name, mixed, grouping="contiguous").scorer, method(name, mixed).allocator)
        scores = [unmixed.scorer(layer) for layer in prompt]
        expected = [method(name, ours).scorer(layer) for layer in prompt]
        assert all(a.scores.equal(b.scores) for a, b in zip(scores, expected, strict=True)), parameter
    contest = method("adakv", ours, contest_grouping="strided").scorer(prompt[0])
    assert contest.contest is not None
    assert contest.contest.equal(method("adakv", mixed).scorer(prompt[0]).scores)
    assert contest.nbytes > LayerScores(contest.scores).nbytes


@pytest.mark.parametrize("allocator", ["adakv", "adacompresskv"])
@pytest.mark.parametrize("scorer", ["compresskv", "streaming_llm"])
def test_a_contest_between_equal_heads_is_refused(scorer: str, allocator: str) -> None:
    shape = PromptShape(2, 2, 80, 4)
    where = context(shape, 2)
    made = EvictionMethod(method(scorer, where).scorer, method(allocator, where).allocator)
    with refused("method.allocator"):
        kept(made, random_layers(shape, 2, 1), 20)


def test_a_contest_that_is_not_a_number_is_refused() -> None:
    scores = LayerScores(torch.ones(2, 5), contest=torch.full((2, 5), math.nan))
    with refused("method.scorer", NonFiniteError):
        refuse_nan([scores])


def test_the_equal_part_is_the_uniform_budgets_where_released() -> None:
    """Twelve and four past tokens around a budget of eight: int(0.2 · 8) = 1 in both."""
    assert rounded((11, 13), 8, 0.2) == (10, 11)
    assert rounded((1, 7), 8, 0.2) == (2, 7)
    assert adakv_apportioned((15, 9), 12, 0.2) == (14, 10)
