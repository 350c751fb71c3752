"""How many heads of a layer select, and that layer budgets are those measured with as many."""

import warnings
from dataclasses import replace
from typing import Any

import pytest

from compresskv import calibration
from compresskv.calibration import Calibration
from compresskv.context import Context
from compresskv.errors import Note, UserError
from compresskv.methods import Part, build, named_method
from compresskv.observation import ObservationConfig
from compresskv.selecting_heads import count_heads, share_of_the_paper

SHIPPED = [calibration.load(path) for path in sorted(calibration.FOLDER.glob("*.json"))]


@pytest.mark.parametrize(
    ("q_heads", "share"), [(1, 1), (4, 1), (9, 1), (11, 1), (12, 2), (28, 4), (32, 4), (40, 5), (64, 8)]
)
def test_the_papers_share_is_rounded_half_up(q_heads: int, share: int) -> None:
    assert share_of_the_paper(q_heads) == share


@pytest.mark.parametrize(("heads", "count"), [(None, 1), ("calibrated", 3), ("all", 9), (2, 2)])
def test_what_a_setting_stands_for(heads: Any, count: int) -> None:
    made = replace(of_nine_heads(), heads=3)
    assert count_heads(heads, made, 9) == count


def of_nine_heads() -> Calibration:
    """Two layers whose shares of the error were measured with 1, 3, 4 and 9 heads."""
    rising, falling = tuple(range(9)), tuple(range(8, -1, -1))
    return Calibration(
        model="tiny",
        source="held_out",
        observation=ObservationConfig(),
        heads=9,
        layer_scores=(0.9, 0.1),
        layer_scores_by_head_count={"1": (0.1, 0.9), "3": (0.3, 0.7), "4": (0.4, 0.6), "9": (0.9, 0.1)},
        head_scores={"semantic": (rising, rising), "traditional": (falling, falling)},
    )


def built(method: str, **scorer: Any) -> Any:
    config = named_method(method)
    assert config.scorer is not None
    allocator = config.allocator if method.startswith("ada") else Part("compresskv.layer_error.allocator")
    part = replace(config.scorer, parameters={**config.scorer.parameters, **scorer})
    context = Context("tiny", layers=2, q_heads=9, kv_heads=3, calibration=of_nine_heads())
    return build(replace(config, scorer=part, allocator=allocator), context)


def layer_scores(method: Any) -> tuple[float, ...]:
    return getattr(method.allocator, "layers", method.allocator).layer_scores


@pytest.mark.parametrize("method", ["compresskv", "headcompresskv", "adacompresskv"])
@pytest.mark.parametrize(
    ("heads", "shares"), [(None, (0.1, 0.9)), (3, (0.3, 0.7)), ("calibrated", (0.9, 0.1)), ("all", (0.9, 0.1))]
)
def test_layer_budgets_follow_the_heads_in_use(method: str, heads: Any, shares: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        assert layer_scores(built(method, heads=heads)) == shares


@pytest.mark.parametrize(("heads", "shares"), [(2, (0.1, 0.9)), (5, (0.4, 0.6)), (6, (0.4, 0.6)), (8, (0.9, 0.1))])
def test_unmeasured_numbers_have_the_nearest_measured_errors(heads: int, shares: tuple[float, ...]) -> None:
    with pytest.warns(Note) if heads == 8 else warnings.catch_warnings():
        assert of_nine_heads().layer_scores_with(heads) == shares
    of_one_number = replace(of_nine_heads(), layer_scores_by_head_count={})
    assert of_one_number.layer_scores_with(heads) == (0.9, 0.1)


def test_a_scorer_without_such_heads_has_the_errors_of_the_papers_share() -> None:
    assert layer_scores(built("snapkv")) == (0.1, 0.9)
    with pytest.raises(UserError):
        built("compresskv", heads=10)  # more than a layer has


@pytest.mark.parametrize("made", SHIPPED, ids=lambda made: f"{made.model}.{made.source}")
def test_semantic_and_traditional_heads_of_the_papers_share_differ(made: Calibration) -> None:
    """In most layers, where both rankings ship; gemma3-270m's best head of each layer is the best of both."""
    if "traditional" not in made.head_scores:
        pytest.skip(f"{made.model}.{made.source} has no traditional scores")
    count = share_of_the_paper(made.q_heads)
    rankings = zip(made.top_heads("semantic", count), made.top_heads("traditional", count), strict=True)
    differing = sum(set(semantic) != set(traditional) for semantic, traditional in rankings)
    assert differing == 0 if made.model == "gemma3-270m" else differing > len(made.layer_scores) / 2
