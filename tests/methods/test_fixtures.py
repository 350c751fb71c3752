"""Golden examples of every method: exact kept positions, capacities and intermediate values, computed by hand."""

import json
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from baselines.adakv import AdaKVAllocator, winners
from baselines.cake import CakeAllocator, CakeScorer, CakeScores, adjust
from baselines.headkv import HeadKVAllocator, pool_and_minimum
from baselines.knorm import KeyNormScorer
from baselines.pyramidkv import PyramidKVAllocator, stepped_schedule
from baselines.random_keep import RandomScorer
from baselines.snapkv import SnapKVScorer
from baselines.streaming_llm import StreamingLLMScorer
from baselines.uniform import UniformAllocator
from compresskv.calibration import find
from compresskv.eviction import EvictionMethod, LayerPrefill, Observation, PromptShape
from compresskv.layer_error import LayerErrorAllocator, layer_budgets
from compresskv.selection import running_capacities, select
from compresskv.semantic_heads import SemanticHeadScorer
from tests.support.refusals import refused

from .construction import FIRST, LENGTH, SECOND, WINDOW, allocated, attending, blank, context, method, past_kept


def look(kernel: int) -> Observation:
    return Observation(window=WINDOW, kernel=kernel)


# SnapKV and CompressKV: B = 4, two past tokens and the window.


@pytest.mark.parametrize(
    ("kv_heads", "grouping", "kernel", "expected"),
    [
        (4, "contiguous", 1, [[0, 1], [2, 3], [1, 2], [4, 5]]),  # keys repeated: what the official SnapKV keeps
        (4, "contiguous", 3, [[0, 1], [2, 3], [1, 2], [4, 5]]),
        (4, "contiguous", 5, [[1, 2], [2, 3], [2, 3], [3, 4]]),
        (2, "contiguous", 1, [[0, 3], [1, 5]]),
        (2, "contiguous", 3, [[2, 3], [2, 4]]),
        (2, "contiguous", 5, [[1, 2], [2, 3]]),
        (2, "strided", 1, [[0, 1], [3, 4]]),
        (2, "strided", 3, [[0, 1], [3, 4]]),
        (2, "strided", 5, [[1, 2], [3, 4]]),
    ],
)
def test_snapkv(kv_heads, grouping, kernel, expected) -> None:
    snapkv = EvictionMethod(SnapKVScorer(look(kernel), grouping), UniformAllocator())
    assert past_kept(snapkv, [attending(FIRST, kv_heads=kv_heads)], 4) == [expected]


@pytest.mark.parametrize(("heads", "expected"), [((1, 3), [3, 4]), ((1,), [2, 3])])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_compresskv(heads, expected, kernel) -> None:
    """Every KV head keeps what the semantic retrieval heads chose."""
    compresskv = EvictionMethod(SemanticHeadScorer(look(kernel), (heads,)), UniformAllocator())
    assert past_kept(compresskv, [attending(FIRST)], 4) == [[expected, expected]]


@pytest.mark.parametrize(
    ("kernel", "twentieths"),
    [
        (1, [[14, 3, 2, 2, 2, 2], [3, 2, 5, 17, 4, 2], [3, 19, 4, 3, 2, 2], [2, 2, 2, 3, 11, 12]]),
        (3, [[17, 19, 7, 6, 6, 4], [5, 10, 24, 26, 23, 6], [22, 26, 26, 9, 7, 4], [4, 6, 7, 16, 26, 23]]),
        (5, [[19, 21, 23, 11, 8, 6], [10, 27, 31, 30, 28, 23], [26, 29, 31, 30, 11, 7], [6, 9, 20, 30, 28, 26]]),
    ],
)
def test_pooled_window_sums(kernel: int, twentieths: list[list[int]]) -> None:
    scores = SnapKVScorer(look(kernel))(attending(FIRST, kv_heads=4)).scores
    torch.testing.assert_close(scores, torch.tensor(twentieths) / (20 * kernel))


def test_max_pooling_pads_with_nothing() -> None:
    scores = SnapKVScorer(Observation(WINDOW, 3, "max"))(attending(FIRST, kv_heads=4)).scores
    torch.testing.assert_close(scores[0], torch.tensor([14, 14, 3, 2, 2, 2]) / 20)


# Methods that do not look at the whole window.


def test_streaming_llm() -> None:
    layers = [attending(FIRST)]
    recent = EvictionMethod(StreamingLLMScorer(), UniformAllocator())
    assert past_kept(recent, layers, 5) == [[[0, 1, 2, 3]] * 2]  # and the last token, 7
    window = EvictionMethod(StreamingLLMScorer(WINDOW, "window"), UniformAllocator())
    assert past_kept(window, layers, 5) == [[[0, 1, 2]] * 2]  # and the window, 6 and 7
    assert past_kept(recent, layers, 7) == [[[0, 1, 2, 3, 5, 6]] * 2]


def test_tova_sees_the_last_row_only() -> None:
    """Sums of the last row over each group, · 20: 8 2 4 9 3 2 5 and 2 10 3 3 6 8 4."""
    tova = method("tova", context(PromptShape(1, 2, LENGTH, WINDOW), observation=look(5)))
    assert tova.window == 1
    assert past_kept(tova, [attending(FIRST)], 4) == [[[0, 3, 6], [1, 4, 5]]]


def test_knorm_keeps_short_keys() -> None:
    keys = torch.tensor([[[3.0, 4], [1, 0], [0, 2], [0, 0.5], [9, 9]], [[0, 0], [1, 1], [0, 1], [0, 7], [0, 0]]])
    layer = LayerPrefill(0, torch.zeros(4, 1, 2), keys, keys, scaling=1.0)
    knorm = EvictionMethod(KeyNormScorer(window=1), UniformAllocator())
    assert past_kept(knorm, [layer], 3) == [[[1, 3], [0, 2]]]


def test_random_depends_on_seed_and_layer_alone() -> None:
    def scores(index: int, seed: int) -> torch.Tensor:
        return RandomScorer(WINDOW, seed)(attending(FIRST, index=index)).scores

    assert scores(0, 0).equal(scores(0, 0))
    assert not scores(0, 0).equal(scores(1, 0))
    assert not scores(0, 0).equal(scores(0, 1))
    assert not scores(0, 0)[0].equal(scores(0, 0)[1])


# PyramidKV: stored tokens of each layer, the window included.


def pyramid(allocator: PyramidKVAllocator, shape: PromptShape, budget: int) -> list[int]:
    capacities = allocated(allocator, blank(shape), shape, budget)
    return [capacity + shape.window for capacity in capacities]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("length", "schedule_length", "uniform_short", "expected"),
    [
        (100, None, False, [23, 17, 11, 5]),
        (100, None, True, [23, 17, 11, 5]),
        (20, None, False, [20, 16, 12, 8]),
        (20, None, True, [14] * 4),
        (100, 20, False, [20, 16, 12, 8]),  # the schedule of a first prompt of 20 tokens
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_pyramidkv_small_schedule(length, schedule_length, uniform_short, expected, exact) -> None:
    """B = 14, w = 2, four layers, beta 4: base 12, from 21 down to 3 in steps of 6. Here nothing needs rounding."""
    allocator = PyramidKVAllocator(4, schedule_length, uniform_short, exact)
    assert pyramid(allocator, PromptShape(4, 1, length, 2), 14) == expected
    assert pyramid(allocator, PromptShape(1, 1, 1000, 8), 128) == [128]  # a single layer gets the mean


def test_pyramidkv_short_first_prompt_inverts_the_schedule() -> None:
    schedule = stepped_schedule(2040, 1892, 32, 20)
    assert schedule[0] + 8 == 1900
    assert schedule[-1] + 8 == 2210
    assert {b - a for a, b in pairwise(schedule)} == {10}


@pytest.mark.parametrize(
    ("budget", "last", "first", "step", "stored_first", "stored_last"),
    [
        (128, 6, 234, 7, 242, 25),
        (256, 12, 484, 15, 492, 27),
        (512, 25, 983, 30, 991, 61),
        (1024, 50, 1982, 62, 1990, 68),
        (2048, 102, 3978, 125, 3986, 111),
    ],
)
def test_pyramidkv_released_steps(budget, last, first, step, stored_first, stored_last) -> None:
    base = budget - 8
    schedule = stepped_schedule(base, 10**6, 32, 20)
    assert schedule[0] == first
    assert 2 * base - schedule[0] == last
    assert schedule[0] - schedule[1] == step
    assert (schedule[0] + 8, schedule[-1] + 8) == (stored_first, stored_last)


@pytest.mark.parametrize(
    ("layers", "means"),
    [
        (32, {64: 71.5, 128: 133.5, 256: 259.5, 512: 526, 1024: 1029, 2048: 2048.5}),
        (48, {128: 148, 256: 257, 512: 521, 1024: 1026.5}),
        (64, {64: 86.5, 128: 147.5, 256: 271.5, 512: 518.5, 1024: 1045}),
    ],
)
def test_pyramidkv_released_overshoot(layers: int, means: dict[int, float]) -> None:
    """Mean stored tokens a layer of a long prompt: more than was asked for; exactly that when apportioned."""
    shape = PromptShape(layers, 1, 100_000, 8)
    for budget, mean in means.items():
        assert sum(pyramid(PyramidKVAllocator(exact=False), shape, budget)) / layers == mean
        assert sum(pyramid(PyramidKVAllocator(), shape, budget)) == layers * budget


# AdaKV: base 2 a head.


@pytest.mark.parametrize(
    ("kernel", "alpha", "exact", "counts", "expected"),
    [
        (3, 0.0, False, (1, 3), [[3], [1, 2, 4]]),
        (3, 0.2, False, (1, 2), [[3], [2, 4]]),
        (3, 0.5, False, (2, 2), [[2, 3], [2, 4]]),
        (1, 0.2, False, (2, 2), [[0, 3], [1, 5]]),
        (3, 0.2, True, (1, 3), [[3], [1, 2, 4]]),
        (3, 0.5, True, (2, 2), [[2, 3], [2, 4]]),
        (3, 1.0, True, (2, 2), [[2, 3], [2, 4]]),
    ],
)
def test_adakv(kernel, alpha, exact, counts, expected) -> None:
    adakv = EvictionMethod(SnapKVScorer(look(kernel)), AdaKVAllocator(alpha, exact))
    scores = adakv.scorer(attending(FIRST))
    assert adakv.allocator([scores], PromptShape(1, 2, LENGTH, WINDOW), 4) == [counts]
    assert past_kept(adakv, [attending(FIRST)], 4) == [expected]
    if kernel == 3:
        assert winners(scores, 2) == (1, 3)


# HeadKV.


@pytest.mark.parametrize(
    ("kv_heads", "expected"),
    [
        (4, [[0], [2, 3, 4], [1, 2], [4, 5]]),  # base 2, each head gives 1 to the pool of 4: 1.4, 2.6, 1.8 and 2.2
        (2, [[0, 3], [1, 5]]),  # the mean over query heads: (1.4 + 2.6) / 2 and (1.8 + 2.2) / 2
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_headkv(kv_heads, expected, exact) -> None:
    headkv = EvictionMethod(SnapKVScorer(look(1)), HeadKVAllocator(((0.1, 0.4, 0.2, 0.3),), beta=2, exact=exact))
    assert past_kept(headkv, [attending(FIRST, kv_heads=kv_heads)], 4) == [expected]


BETAS = (1.005, 1.01, 1.1, 1.2, 1.5, 2, 5, 10)


@pytest.mark.parametrize(
    ("budget", "table"),
    [
        (128, "119,1 118,2 109,11 100,20 80,40 60,60 24,96 12,108"),
        (256, "246,2 245,3 225,23 206,42 165,83 124,124 49,199 24,224"),
        (512, "501,3 499,5 458,46 420,84 336,168 252,252 100,404 50,454"),
        (1024, "1010,6 1005,11 923,93 846,170 677,339 508,508 203,813 101,915"),
        (2048, "2029,11 2019,21 1854,186 1700,340 1360,680 1020,1020 408,1632 204,1836"),
    ],
)
def test_headkv_pool_and_minimum(budget: int, table: str) -> None:
    expected = [tuple(map(int, pair.split(","))) for pair in table.split()]
    assert [pool_and_minimum(budget - 8, beta) for beta in BETAS] == expected


def test_headkv_temperature_and_zero_scores() -> None:
    """Squared, 1 : 3 becomes 1 : 9; heads without any score share equally."""
    shape = PromptShape(1, 2, 100, 2)
    assert HeadKVAllocator(((1.0, 3.0),), beta=1, temp=2)(blank(shape), shape, 12) == [(2, 18)]
    assert HeadKVAllocator(((0.0, 0.0),), beta=1)(blank(shape), shape, 12) == [(10, 10)]


# CAKE: two layers.

BOTH = [attending(FIRST), attending(SECOND, index=1)]
ONES, LLAMA = (1.0, 1.0), (1.6, 0.4)


def test_cake_preferences() -> None:
    scores = [CakeScorer(look(5))(layer) for layer in BOTH]
    assert [s.dispersion for s in scores] == pytest.approx([10.219791, 12.794305], rel=1e-6)
    assert [s.shift for s in scores] == pytest.approx([0.01625, 0.0825], rel=1e-5)
    assert [s.preference(ONES) for s in scores] == pytest.approx([0.1660716, 1.0555301], rel=1e-5)
    assert [s.preference(LLAMA) for s in scores] == pytest.approx([1.4389134e-4, 9.6165722e-3], rel=1e-5)


def test_cake_scores() -> None:
    expected = [
        [[0.1475, 0.22, 0.235, 0.1775, 0.14, 0.0975], [0.13, 0.195, 0.2525, 0.35, 0.2725, 0.2575]],
        [[0.39, 0.52, 0.6725, 0.59, 0.46, 0.33], [0.59, 0.72, 0.995, 1.045, 0.81, 0.68]],
    ]
    for layer, values in zip(BOTH, expected, strict=True):
        torch.testing.assert_close(CakeScorer(look(5))(layer).scores, torch.tensor(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("taus", "exact"), [(ONES, False), (LLAMA, False), (ONES, True)])
@pytest.mark.parametrize(
    ("budget", "alone", "kept_alone", "both", "kept_both"),
    [
        (4, 4, [[0, 1, 2, 3], [2, 3, 4, 5]], [1, 3], [[[2], [3]], [[1, 2, 3], [2, 3, 4]]]),
        (5, 6, [[0, 1, 2, 3, 4, 5]] * 2, [1, 5], [[[2], [3]], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]]),
    ],
)
def test_cake_cascade(taus, exact, budget, alone, kept_alone, both, kept_both) -> None:
    """The first layer has the budget of both until the second arrives."""
    cake = EvictionMethod(CakeScorer(look(5)), CakeAllocator((taus, taus), exact))
    scores = [cake.scorer(layer) for layer in BOTH]
    shape = PromptShape(2, 2, LENGTH, WINDOW)
    assert running_capacities(cake, scores[:1], shape, budget) == [alone]
    assert [p.tolist() for p in select(scores[0], alone, LENGTH)] == [[*head, 6, 7] for head in kept_alone]
    assert running_capacities(cake, scores, shape, budget) == both
    assert past_kept(cake, BOTH, budget) == kept_both


@pytest.mark.parametrize(("budget", "both"), [(4, [0, 4]), (5, [0, 6])])
def test_cake_shares_follow_sainte_lague(budget: int, both: list[int]) -> None:
    """Preferences of 1 : 67: even the fourth token of layer 1, or its sixth, comes before the first of layer 0."""
    cake = EvictionMethod(CakeScorer(look(5)), CakeAllocator((LLAMA, LLAMA)))
    scores = [cake.scorer(layer) for layer in BOTH]
    assert running_capacities(cake, scores, PromptShape(2, 2, LENGTH, WINDOW), budget) == both


def test_cake_released_tolerates_the_window() -> None:
    """S = 8 = B + w: the released code evicts nothing, where the budget asks for 16 of 24."""
    released = EvictionMethod(CakeScorer(look(5)), CakeAllocator(exact=False))
    assert past_kept(released, BOTH, 6) == [[[0, 1, 2, 3, 4, 5]] * 2] * 2
    corrected = EvictionMethod(CakeScorer(look(5)), CakeAllocator())
    assert [len(layer[0]) for layer in past_kept(corrected, BOTH, 6)] == [2, 6]


def test_cake_taus_depend_on_the_budget() -> None:
    allocator = CakeAllocator((ONES, LLAMA), exact=True)
    shape = PromptShape(2, 1, 2000, 2)
    layers = [CakeScores(torch.zeros(1, 1998), dispersion=1.0, shift=s) for s in (1.0, 0.5)]
    # 1 : 1/2 with tau2 = 1; with tau2 = 0.4 it is 1 : 2^-2.5, 0.15 of the mass.
    assert allocator(layers, shape, 256) == [339, 169]
    assert allocator(layers, shape, 258) == [435, 77]


@pytest.mark.parametrize(
    ("budgets", "total", "cap", "expected"),
    [
        ([7.9, 2.1], 10, 6, [6, 4]),
        ([10], 10, 6, [6]),
        ([3.4, 3.3, 3.3], 10, 20, [4, 3, 3]),
        ([9, 0.5, 0.5], 10, 6, [6, 3, 1]),
        ([100.7, 50.2, 49.1], 200, 90, [90, 56, 54]),
        ([0.2, 0.3, 9.5], 10, 30, [1, 0, 9]),
    ],
)
def test_cake_adjust(budgets: list[float], total: int, cap: int, expected: list[int]) -> None:
    assert adjust(budgets, total, cap) == expected


# CompressKV's layer budgets.


@pytest.mark.parametrize(
    ("layer_scores", "total", "floor", "cap", "expected"),
    [
        ((0.7, 0.2, 0.1), 30, 4, 12, (12, 10, 8)),
        ((0.5, 0.3, 0.2), 30, 4, 15, (13, 9, 8)),
        ((0.34, 0.33, 0.33), 20, 2, 20, (7, 6, 7)),
        ((0.4, 0.3, 0.2, 0.1), 4 * 16, 32, 48, (32, 32, 32, 32)),
        ((0.4, 0.3, 0.2, 0.1), 4 * 32, 32, 96, (32, 32, 32, 32)),
    ],
)
def test_layer_budgets(layer_scores, total, floor, cap, expected) -> None:
    assert layer_budgets(layer_scores, total, floor, cap) == expected


PUBLISHED = json.loads((Path(__file__).parent / "published_budgets.json").read_text())


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_layer_budgets(model: str) -> None:
    """Those of every layer, from the figures that ship as `calibration=published`."""
    published = find(model, "published")
    assert published is not None
    assert published.layer_scores == tuple(PUBLISHED[model]["layer_scores"])
    layers = len(published.layer_scores)
    shape = PromptShape(layers, 8, 100_000, 8)
    for budget, expected in PUBLISHED[model]["budgets"].items():
        for exact in (False, True):
            capacities = LayerErrorAllocator(published.layer_scores, exact)(blank(shape), shape, int(budget))
            assert [c + 8 for c in capacities] == expected
        assert sum(expected) == layers * int(budget)


def test_published_heads_of_qwen() -> None:
    """All 28 are ranked; the four that are used lie in as many of the four KV groups as were counted there."""
    published = find("qwen2.5-7b-instruct", "published")
    assert published is not None
    assert published.heads == 4
    assert [sorted(layer) for layer in published.top_heads("semantic", 28)] == [list(range(28))] * 28
    groups = [[head // 7 for head in layer] for layer in published.top_heads("semantic", 4)]
    spread = [len(set(layer)) for layer in groups]
    assert [spread.count(n) for n in (1, 2, 3, 4)] == [3, 13, 10, 2]
    everywhere = list(chain.from_iterable(groups))
    assert [everywhere.count(group) for group in range(4)] == [22, 31, 31, 28]


def test_published_calibrations_need_the_window_they_were_made_with() -> None:
    published = find("llama-3.1-8b-instruct", "published")
    assert published is not None
    where = replace(
        context(PromptShape(32, 8, 100, 8), group=4, observation=Observation()),
        calibration=published,
        model="llama-3.1-8b-instruct",
    )
    heads = method("compresskv", where).scorer.heads  # type: ignore[attr-defined]
    assert heads[0] == (11, 25, 23, 27)
    assert heads[31] == (21, 20, 30, 7)
    with refused("observation.window"):
        method("compresskv", replace(where, observation=Observation(window=16)))
    assert method("headkv", where).allocator.head_scores[15][30] == 0.901625  # type: ignore[attr-defined]


def test_published_traditional_scores_and_rankings() -> None:
    """The best traditional heads of each model, and all 32 heads of a layer ranked by the semantic score."""
    best = {
        "llama-3.1-8b-instruct": [(15, 30), (16, 20), (16, 1), (15, 1), (24, 27), (8, 1), (27, 7), (16, 23), (20, 14)],
        "mistral-7b-instruct-v0.3": [(18, 0), (12, 7), (12, 6), (18, 2), (18, 3), (30, 8), (28, 0), (2, 23), (19, 8)],
    }
    for model, expected in best.items():
        published = find(model, "published")
        assert published is not None
        scores = published.scores("traditional")
        places = [(layer, head) for layer in range(32) for head in range(32)]
        assert sorted(places, key=lambda place: -scores[place[0]][place[1]])[:9] == expected
        assert [sorted(layer) for layer in published.top_heads("semantic", 32)] == [list(range(32))] * 32
