"""A method that writes to shared tensors is refused by name, and the other settings do not change."""

from dataclasses import dataclass

import pytest
import torch

from baselines.h2o import H2OScorer
from baselines.snapkv import SnapKVScorer
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import PromptError, UserError
from compresskv.eviction import EvictionMethod, LayerScores, Observation
from compresskv.installed import cache_argument
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV
from tests.support.writers import COUNTED, Writes, of

NEW = Stopping(4)


@pytest.mark.parametrize("fault", COUNTED)
def test_who_writes_is_named(fault):
    method, name = COUNTED[fault]
    model, ids = tiny.model("llama"), tiny.prompt(60)
    settings = [Setting(SNAPKV, 20), Setting(method, 20), FULL]
    with attached(model):
        for chunk in (None, 25):
            with pytest.raises(UserError) as shared:
                generate(model, ids, settings, NEW, chunk=chunk)
            assert shared.value.field in ("method.scorer", "method.allocator")
            assert name in str(shared.value.value).split(" or ")
            # The setting is at fault, not the prompt: it ends, and others are tried without it.
            assert not isinstance(shared.value, PromptError)
        if fault != "keys of the layer before":  # inside a layer, nobody reads these again
            with pytest.raises(UserError) as alone:
                generate_in_layer(model, ids, settings[1], NEW)
            assert alone.value.field in ("method.scorer", "method.allocator")
            assert alone.value.value == name


@pytest.mark.parametrize("how", ["itself", "view", "out"])
def test_under_inference_mode_it_raises(how):
    model, ids = tiny.model("llama"), tiny.prompt(60)
    with torch.inference_mode(), compressed(model, SNAPKV, 20) as cache:
        model(ids[None], **{cache_argument(model): cache})
    with (
        pytest.raises((UserError, RuntimeError)),
        torch.inference_mode(),
        compressed(model, of(Writes("keys", how)), 20) as cache,
    ):
        model(ids[None], **{cache_argument(model): cache})


@dataclass(frozen=True)
class OfAllQueries:
    """Scores that depend on all queries and observers in the layer."""

    window: int = 4

    def __call__(self, layer):
        queries = layer.queries.mean(1, keepdim=True).unflatten(0, (layer.kv_heads, -1)).mean(1)
        scores = (queries @ layer.keys.transpose(1, 2))[:, 0, : -self.window]
        return LayerScores(scores * (1 + layer.queries.shape[1] + len(layer.observed)))


def test_a_scorer_sees_the_queries_of_its_own_window_and_its_own_observer():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    own, wide = Setting(of(OfAllQueries()), 20), Setting(of(SnapKVScorer(Observation(window=16))), 40)
    observing = Setting(of(H2OScorer(4)), 20)
    with attached(model):
        (alone,) = generate(model, ids, [own], NEW)
        beside = generate(model, ids, [wide, own, observing], NEW)[1]
        prompt = prefill(model, ids, 16, scorers=[observing.method.scorer])
        together = prompt.kept(own)
        apart = prefill(model, ids, 4).kept(own)
        assert beside.tokens == alone.tokens == generate_in_layer(model, ids, own, NEW).tokens
    assert all(torch.equal(a, b) for x, y in zip(together, apart, strict=True) for a, b in zip(x, y, strict=True))
    seen = prompt.layers[0].seen_by(OfAllQueries())
    assert seen.queries.equal(prompt.layers[0].queries[:, -4:])
    assert seen.observed == {}
    assert prompt.layers[0].seen_by(observing.method.scorer).observed
    # The attention stays shared: that of the widest window, computed once.
    wider, narrower = prompt.layers[0].window_attention(16), seen.window_attention(4)
    assert narrower.data_ptr() == wider[:, 12:].data_ptr()
    with pytest.raises(ValueError, match="window=8"):
        seen.window_attention(8)


def test_a_window_of_no_tokens_sees_the_same_on_both_paths():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    shapes = []

    @dataclass(frozen=True)
    class Nothing:
        window: int = 0

        def __call__(self, layer):
            shapes.append(tuple(layer.queries.shape))
            return LayerScores(layer.keys.norm(dim=-1))

    setting = Setting(EvictionMethod(Nothing(), RAGGED.allocator), 40)
    with attached(model):
        (shared,) = generate(model, ids, [setting], NEW)
        assert generate_in_layer(model, ids, setting, NEW) == shared
    assert set(shapes) == {(6, 1, 16)}


def test_the_forecast_survives_a_method_that_fails():
    """Its own prompts will end it, not the sweep."""
    shape = Footprint(tiny.model("llama"), 200, "sdpa")
    for method, _ in COUNTED.values():
        both = shape.scoring([method.scorer, SNAPKV.scorer], 4)
        assert both.scores >= shape.scoring([SNAPKV.scorer], 4).scores
