"""Protocol fields that methods read: what protocol/test_every_field.py does not show with one method each."""

from dataclasses import replace

import pytest
import torch

from baselines.cake import CakeAllocator, CakeScores
from baselines.headkv import HeadKVAllocator
from compresskv.calibration import Calibration
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores, PromptShape
from compresskv.layer_error import LayerErrorAllocator
from compresskv.protocol import EvaluationProtocol
from tests.support.refusals import refused

from .construction import (
    FIRST,
    LENGTH,
    WINDOW,
    allocated,
    attending,
    blank,
    context,
    method,
    nearly_equal_logits,
    past_kept,
    random_layers,
)

SMALL = PromptShape(1, 2, LENGTH, WINDOW)
PYRAMID = PromptShape(4, 1, 100, 2)


def both(name: str, field: str, shape: PromptShape, released: object, group: int = 2) -> list[EvictionMethod]:
    """The method under `corrected`, and with only `field` changed to its `released` value."""
    protocols = EvaluationProtocol(), replace(EvaluationProtocol(), **{field: released})  # type: ignore[arg-type]
    return [method(name, context(shape, group, protocol=protocol)) for protocol in protocols]


def stored(chosen: EvictionMethod, shape: PromptShape, budget: int) -> list[int]:
    """Tokens of each layer, the window included."""
    capacities = allocated(chosen.allocator, blank(shape), shape, budget)
    return [capacity + shape.window for capacity in capacities]  # type: ignore[operator]


def test_pyramid_schedule_of_a_prompt_without_a_task() -> None:
    """It is its own first prompt."""
    corrected, released = both("pyramidkv", "pyramid_schedule", PYRAMID, "first_prompt")
    assert stored(corrected, PYRAMID, 14) == stored(released, PYRAMID, 14)


def test_exact_budget_pyramidkv_gives_surplus_to_layers_that_can_use_it() -> None:
    """A schedule for 100 tokens, of which the present prompt has only 18 past ones."""
    shape = replace(PYRAMID, length=20)
    where = replace(context(shape), protocol=EvaluationProtocol(pyramid_schedule="first_prompt"), first_prompt=100)
    for exact, expected in ((True, [20, 19, 12, 5]), (False, [20, 17, 11, 5])):
        chosen = method("pyramidkv", replace(where, protocol=replace(where.protocol, exact_budget=exact)), beta=4)
        assert stored(chosen, shape, 14) == expected


def test_exact_budget_cake_cascade() -> None:
    """Preferences 6 : 1 : 3 share 6 tokens.

    Released, the second layer gets none of them when it arrives (5.1 and 0.9 are cut to 5 and 0, and the one left over
    goes to the first layer), so it has nothing left when the third layer's arrival would give it one.
    """
    shape = PromptShape(3, 1, 62, 2)
    scores = [CakeScores(torch.zeros(1, 60), dispersion=preference, shift=1.0) for preference in (6.0, 1.0, 3.0)]
    released = CakeAllocator(exact=False)
    assert released(scores[:2], shape, 4) == [6, 0]
    assert released(scores, shape, 4) == [4, 1, 1]
    assert allocated(released, scores, shape, 4) == [4, 0, 1]
    assert allocated(CakeAllocator(), scores, shape, 4) == [3, 1, 2]


@pytest.mark.parametrize(
    ("head_scores", "heads", "budget", "past", "corrected", "released"),
    [
        ((1.0, 1.0, 2.0), 3, 12, 100, (8, 7, 15), (8, 8, 15)),  # released, 7.5 rounds up twice
        ((2.0, 0.0, 1.0), 3, 12, 15, (15, 0, 15), (15, 0, 10)),  # and of 20 tokens for a head with 15, five are lost
        ((2.5, 4.5, 12.0, 13.0), 2, 10, 100, (4, 12), (4, 12)),  # rounded once, per KV head: 3.5 to 4, 12.5 to 12
    ],
)
def test_exact_budget_headkv(head_scores, heads, budget, past, corrected, released) -> None:
    shape = PromptShape(1, heads, past + 2, 2)
    for exact, expected in ((True, corrected), (False, released)):
        allocator = HeadKVAllocator((head_scores,), beta=1, exact=exact)
        assert allocated(allocator, blank(shape), shape, budget) == [expected]


def test_exact_budget_compresskv() -> None:
    """What the first layer cannot use goes to the others, and a budget below 32 tokens is kept to."""
    scores = (0.7, 0.2, 0.1)
    shape = PromptShape(3, 1, 150, 8)
    corrected, released = LayerErrorAllocator(scores, True), LayerErrorAllocator(scores, False)
    # 300 tokens: 32 + 0.7 · 204 = 175, 32 + 0.2 · 204 = 73, 32 + 0.1 · 204 = 52.
    assert [c + 8 for c in released(blank(shape), shape, 100)] == [175, 73, 52]
    assert [c + 8 for c in corrected(blank(shape), shape, 100)] == [150, 90, 60]
    assert [c + 8 for c in released(blank(shape), shape, 16)] == [32, 32, 32]
    assert [c + 8 for c in corrected(blank(shape), shape, 16)] == [16, 16, 16]


@pytest.mark.parametrize("name", ["headkv", "adakv"])
def test_head_pooling(name: str) -> None:
    """Maximum over 7 instead of the run's pooling."""
    corrected, released = both(name, "head_pooling", SMALL, "official")
    scores = corrected.scorer(attending(FIRST)).scores
    torch.testing.assert_close(scores[0], torch.tensor([17, 5, 7, 19, 6, 4]) / 40)
    scores = released.scorer(attending(FIRST)).scores
    torch.testing.assert_close(scores, torch.tensor([[19] * 6, [21] * 5 + [14]]) / 40)


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "cake", "compresskv", "adacompresskv", "headcompresskv"])
def test_head_pooling_is_the_runs_in_other_methods(name: str) -> None:
    corrected, released = both(name, "head_pooling", SMALL, "official")
    assert corrected == released


@pytest.mark.parametrize("name", ["headkv", "adakv", "tova", "compresskv"])
def test_score_dtype(name: str) -> None:
    """In float32 token 1 wins by 2⁻¹⁰; in bfloat16 the two are equal and the lower index wins."""
    shape = PromptShape(1, 1, 6, 2)
    corrected, released = both(name, "score_dtype", shape, "model", group=1)
    layer = nearly_equal_logits()
    budget = corrected.window + 1
    assert past_kept(corrected, [layer], budget) == [[[1]]]
    assert past_kept(released, [layer], budget) == [[[0]]]
    assert released.scorer(layer).scores.dtype == torch.bfloat16


def test_score_dtype_cake() -> None:
    """Variances of at most 2⁻²⁵ vanish in float16, and with them the layer's claim to a budget."""
    shape = PromptShape(1, 1, 4000, 2)
    corrected, released = both("cake", "score_dtype", shape, "model")
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(1, 2, 4, generator=generator), torch.randn(1, 4000, 4, generator=generator)
    layer = LayerPrefill(0, queries.half() * 0.05, keys.half(), keys.half(), scaling=0.5)
    assert 0 < corrected.scorer(layer).shift < 4000 * 2**-25
    assert released.scorer(layer).shift == 0
    assert released.scorer(layer).preference((1.0, 1.0)) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_score_dtype_cake_sums_and_raises_in_it(dtype: torch.dtype) -> None:
    """The released order: variance over the window, sum over heads, over columns, power, each rounded to the dtype."""
    shape = PromptShape(1, 2, 200, 4)
    _, released = both("cake", "score_dtype", shape, "model")
    (layer,) = random_layers(shape, 2, seed=4)
    layer = replace(layer, queries=layer.queries.to(dtype), keys=layer.keys.to(dtype), values=layer.values.to(dtype))
    attention = layer.window_attention(4, None)[..., :-4]
    by_column = torch.zeros(196, dtype=dtype)
    for column, variances in enumerate(attention.var(1).unbind(1)):
        by_column[column] = variances.float().sum()
    total = by_column.float().sum().to(dtype)
    shares = attention.float()
    entropy = -(shares * (shares + 1e-10).log()).sum()
    scores = released.scorer(layer)
    assert scores.shift == total.item()
    assert scores.preference((1.6, 0.4)) == pytest.approx((entropy ** (1 / 1.6) * total ** (1 / 0.4)).item(), rel=1e-6)
    exact = scores.dispersion ** (1 / 1.6) * scores.shift ** (1 / 0.4)
    assert scores.preference((1.6, 0.4)) != pytest.approx(exact, rel=1e-5)


def test_score_dtype_knorm() -> None:
    keys = torch.tensor([[[1, 2.0**-4], [1, 0], [9, 9]]], dtype=torch.bfloat16)
    layer = LayerPrefill(0, keys[:, :1], keys, keys, scaling=1.0)
    corrected, released = both("knorm", "score_dtype", PromptShape(1, 1, 3, 1), "model")
    assert past_kept(corrected, [layer], 2) == [[[1]]]
    assert past_kept(released, [layer], 2) == [[[0]]]


# Parameters, and what methods refuse.


def test_head_scores_by_name() -> None:
    where = context(SMALL)
    assert isinstance(where.calibration, Calibration)
    for name, kind in [("retrieval", "traditional"), ("retrieval_reasoning",) * 2, ("semantic",) * 2]:
        chosen = method("headkv", where, head_scores=name)
        assert chosen.allocator.head_scores == where.calibration.head_scores[kind]  # type: ignore[attr-defined]
    counting = replace(where, protocol=EvaluationProtocol(srh_multiplicity="count"))
    chosen = method("headkv", counting, head_scores="semantic")
    assert chosen.allocator.head_scores == where.calibration.head_scores["semantic_count"]  # type: ignore[attr-defined]


def test_cake_needs_a_window_and_its_own_scores() -> None:
    with refused("observation.window"):
        method("cake", context(PromptShape(1, 1, 8, 1)))
    with refused("method/allocator", value="cake"):
        CakeAllocator()([LayerScores(torch.zeros(1, 6))], SMALL, 4)
