"""The cache's bytes, and the models that it refuses."""

import pytest
import torch

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.in_layer import LayerwiseCache, generate_in_layer
from compresskv.engine.prefill import Setting
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV, name_of, settings_for
from tests.support.refusals import refused


def test_a_model_with_other_layers_is_refused():
    model = tiny.model("llama")
    config = type(model.config)(**tiny.SIZE)
    config.layer_types = ["linear_attention"] * 4
    with refused("model"):
        LayerwiseCache(config, Setting(SNAPKV, 20))


@pytest.mark.parametrize("setting", settings_for(4), ids=name_of)
def test_cache_bytes(setting):
    """2 · Σ kept · head_dim · itemsize; what is allocated adds the rounding to 32 tokens and the room."""
    model, ids, room = tiny.model("llama"), tiny.prompt(90), 12
    with attached(model):
        generation = generate_in_layer(model, ids, setting, Stopping(room))
        cache = LayerwiseCache(model.config, setting, 90, room)
        with torch.no_grad():
            model(ids[None], past_key_values=cache)
    counts = [count for layer in generation.kept for count in layer]
    assert generation.cache_bytes == 2 * sum(counts) * 16 * 4
    assert cache.nbytes == 2 * sum(-(-count // 32) * 32 + room for count in counts) * 16 * 4
