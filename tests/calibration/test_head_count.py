"""The choice of the number of heads, by distance on text and coverage on needles."""

import pytest
import torch

from compresskv.calibration import text_distance
from compresskv.eviction import Observation
from compresskv.semantic_heads import SemanticHeadScorer
from evals.calibration.head_count import CONTINUATION, choose, stretches
from evals.haystack import Haystack

COVERAGE = [0.08, 0.06, 0.05]
"""Of 1, 2 and 3 heads."""


@pytest.mark.parametrize(
    ("kl", "heads"),
    [
        ([], 1),  # needles alone
        (
            [[1.5, 0.5, 0.5], [1.6, 0.5, 0.7], [1.4, 0.6, 0.5]],
            2,
        ),  # two are as good as three on text, and better on needles
        ([[1.5, 0.9, 0.5], [1.6, 0.9, 0.6], [1.4, 1.0, 0.5]], 3),
        ([[0.4, 0.9, 0.5], [0.6, 0.9, 0.4], [0.5, 1.0, 0.7]], 1),
        ([[0.6, 0.5, 0.7]], 2),  # one text has no spread
    ],
)
def test_the_choice(kl, heads):
    assert (1, 2, 3)[choose((1, 2, 3), COVERAGE, kl)] == heads


def test_equal_numbers_take_the_fewer_heads():
    assert choose((1, 2), [0.1, 0.1], [[0.5, 0.5], [0.6, 0.6]]) == 0


def test_stretches_share_no_token(default_model):
    text = " ".join(f"word{number}" for number in range(400))
    ids = default_model.tokenizer(text).input_ids
    made = list(stretches(default_model, Haystack(text), 200, 16).values())
    assert len(made) == len(ids) // (200 + CONTINUATION)
    rejoined = [token for stretch in reversed(made) for token in stretch.tolist()]
    assert rejoined == ids[len(ids) - len(rejoined) :]
    (repeated,) = stretches(default_model, Haystack("a short text"), 200, 16).values()
    assert repeated.numel() == 200 + CONTINUATION


def test_distance_on_text(default_model):
    """The distance is 0 if everything is kept, and grows with fewer tokens."""
    ids = torch.arange(1000, 1060)
    scorers = [SemanticHeadScorer(Observation(8, 5, "average"), ((heads,),) * 30) for heads in (0, 4)]
    continuation = list(range(2000, 2004))

    def distances(*capacities):
        return text_distance.observe(default_model.model, ids, continuation, scorers, capacities)

    assert distances(52) == pytest.approx([0, 0], abs=1e-6)
    far, near = distances(8), distances(30)
    assert all(a > b > 0 for a, b in zip(far, near, strict=True))
    assert distances(8, 30) == pytest.approx([(a + b) / 2 for a, b in zip(far, near, strict=True)], rel=1e-4)
