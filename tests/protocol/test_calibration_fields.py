"""Measurements of a calibration in hand-computed examples, and protocol fields that choose calibrations."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from compresskv import calibration
from compresskv.calibration import Calibration, layer_errors
from compresskv.calibration.retrieval_heads import glance, stacked, step_scores
from compresskv.context import Context
from compresskv.errors import Note
from compresskv.eviction import Observation
from compresskv.methods import build, named_method
from compresskv.protocol import EvaluationProtocol
from evals.running.methods import build_method
from tests.methods.construction import method
from tests.support.calibrations import record

PROMPT = torch.tensor([9, 5, 7, 5, 8])
SPAN = range(1, 4)
STEPS = [
    # The token that is predicted, and the attention of heads a and b.
    (7, [[0.5, 0.1, 0.15, 0.05, 0.2], [0.12, 0.11, 0.6, 0.1, 0.07]]),
    (5, [[0.4, 0.2, 0.12, 0.08, 0.1, 0.1], [0.1, 0.12, 0.13, 0.5, 0.08, 0.07]]),
    (9, [[0.3, 0.05, 0.06, 0.04, 0.25, 0.14, 0.16], [0.5, 0.02, 0.03, 0.01, 0.2, 0.14, 0.1]]),
]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("semantic_count", [1.10, 2.31]),  # the span holds token 5 twice
        ("semantic", [0.70, 1.56]),
        ("traditional", [0.0, 2 / 3]),
        ("retrieval_reasoning", [0.156667, 0.486667]),
    ],
)
def test_head_scores(kind: str, expected: list[float]) -> None:
    """Two heads, three decoding steps; each layer here is one head."""
    total = torch.zeros(2, 1)
    for token, attention in STEPS:
        seen = stacked([glance(torch.tensor([head]), SPAN) for head in attention])
        total += step_scores(seen, PROMPT, SPAN, token)[kind]
    torch.testing.assert_close(total.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_layer_errors() -> None:
    """Two layers, two decoding steps each, summed; then each layer's share."""
    full = torch.tensor([[[3, 4], [0, 2]], [[1, 0], [0, 1]]], dtype=torch.float64)
    kept = torch.tensor([[[3, 5], [1, 2]], [[1, 0], [0.6, 1]]], dtype=torch.float64)
    errors = layer_errors.relative_error(full, kept).sum(-1)
    torch.testing.assert_close(errors, torch.tensor([0.69999710, 0.59999400], dtype=torch.float64), atol=5e-9, rtol=0)
    shares = layer_errors.share([errors])
    torch.testing.assert_close(shares, torch.tensor([0.53846299, 0.46153701], dtype=torch.float64), atol=5e-9, rtol=0)


def test_every_dataset_weighs_the_same_in_layer_scores() -> None:
    """Independent of the length of its generations."""
    one, other = torch.tensor([1.0, 3.0]), torch.tensor([60.0, 20.0])
    torch.testing.assert_close(layer_errors.share([one, other]), torch.tensor([0.5, 0.5]))


def made(source: str, layer_scores: tuple[float, ...] = (0.5, 0.5)) -> Calibration:
    """Head 0 has the larger mass, head 1 the larger count."""
    return Calibration(
        model="tiny",
        source=source,
        observation=Observation(),
        heads=1,
        layer_scores=layer_scores,
        head_scores={
            "semantic": ((0.7, 0.6, 0.1, 0.0),) * 2,
            "semantic_count": ((1.1, 2.3, 0.2, 0.0),) * 2,
            "traditional": ((0.0, 0.0, 1.0, 0.0),) * 2,
        },
    )


def context(chosen: Calibration | None, protocol: EvaluationProtocol) -> Context:
    return Context("tiny", layers=2, q_heads=4, kv_heads=2, protocol=protocol, calibration=chosen)


COMPRESSKV = named_method("compresskv")


def test_srh_multiplicity() -> None:
    """Counting a span token as often as it occurs changes the best semantic heads, but not the traditional ones."""
    heads = {}
    for choice in ("indicator", "count"):
        where = context(made("held_out"), replace(EvaluationProtocol(), srh_multiplicity=choice))
        heads[choice] = build(COMPRESSKV, where).scorer.heads  # type: ignore[attr-defined]
        scores = method("headkv", where, head_scores="semantic").allocator.head_scores  # type: ignore[attr-defined]
        assert scores == where.calibration.head_scores["semantic" if choice == "indicator" else "semantic_count"]
        assert method("compresskv", where, head_scores="traditional").scorer.heads == ((2,), (2,))  # type: ignore[attr-defined]
    assert heads == {"indicator": ((0,), (0,)), "count": ((1,), (1,))}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Calibration files of the model "tiny" by source; `write` makes one."""
    monkeypatch.setattr(calibration, "folders", lambda: (tmp_path,))

    def write(source: str, layer_scores: tuple[float, ...]) -> None:
        made = record(source=source, layer_scores=layer_scores)
        (tmp_path / f"tiny.{source}.json").write_text(json.dumps(made))

    return write


def layer_scores(data: str) -> tuple[float, ...]:
    """CompressKV's layer scores with this choice of calibration data."""
    protocol = replace(EvaluationProtocol(), calibration_data=data)
    settings = {"budget": 64, "observation": Observation(), "calibration": "auto", "calibration_check": "on"}
    job = SimpleNamespace(model=SimpleNamespace(name="tiny"), method=COMPRESSKV, protocol=protocol, **settings)
    model = SimpleNamespace(name="tiny", layers=2, q_heads=4, kv_heads=2, fingerprint=None, weights={})
    return build_method(model, job).allocator.layer_scores  # type: ignore[arg-type,union-attr]


def test_calibration_data(files) -> None:
    """The authors' figures replace a calibration; a note says so if they replace a held-out one."""
    files("published", (0.5, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer_scores("longbench") == (0.5, 0.5)
    with pytest.warns(Note), patch.dict("compresskv.errors._TOLD", clear=True):
        assert layer_scores("held_out") == (0.5, 0.5)
    files("held_out", (0.75, 0.25))
    files("longbench", (0.25, 0.75))
    assert layer_scores("held_out") == (0.75, 0.25)
    assert layer_scores("longbench") == (0.25, 0.75)
