"""A method by its name in one's own code, with the calibration of the model."""

import json

import pytest
import torch

from compresskv import calibration, compressed
from compresskv.methods import method_for
from tests.methods.construction import METHODS
from tests.support import tiny
from tests.support.calibrations import record
from tests.support.refusals import refused


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A tiny model that was loaded from a folder called Tiny, and its calibration."""
    model = tiny.model("llama")
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    scores = {"semantic": [list(range(heads))] * layers, "traditional": [list(range(heads))] * layers}
    (tmp_path / "tiny.held_out.json").write_text(json.dumps(record(layers, heads, head_scores=scores)))
    monkeypatch.setattr(calibration, "folders", lambda: (tmp_path,))
    monkeypatch.setattr(model, "name_or_path", "somewhere/Tiny")
    return model


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method(model, name):
    ids = tiny.prompt(60, seed=1)[None]
    with compressed(model, name, budget=20) as cache, torch.no_grad():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=2)
    kept = [len(positions) for layer in cache.kept for positions in layer]
    assert sum(kept) == 20 * len(kept)


def test_the_full_cache_has_no_budget(model):
    assert method_for(model, "full") is None
    ids = tiny.prompt(60, seed=1)[None]
    with compressed(model, "full", budget=20) as cache, torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
    assert cache.setting.budget is None
    assert cache.get_seq_length() == 60


def test_the_calibration_is_found_or_given(model, tmp_path):
    found = method_for(model, "compresskv")
    for given in ("held_out", tmp_path / "tiny.held_out.json", calibration.find("tiny", "held_out")):
        assert method_for(model, "compresskv", given) == found
    (tmp_path / "tiny.held_out.json").unlink()
    with refused("calibration"):
        method_for(model, "compresskv")
    with refused("calibration", value="publishd"):
        method_for(model, "compresskv", "publishd")


def test_a_wrong_name(model):
    with refused("method", value="compreskv"):
        method_for(model, "compreskv")


def test_the_default_model_is_known_by_its_weights(default_model):
    shipped = calibration.find("smollm2-135m", "held_out")
    assert shipped is not None
    assert calibration.same(shipped.weights, default_model.weights)
    method = method_for(default_model.model, "compresskv")
    assert method is not None
    assert method.allocator.layer_scores == shipped.layer_scores_by_head_count["1"]  # type: ignore[attr-defined]
