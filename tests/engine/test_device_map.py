"""A model in parts: accelerate moves tensors between its modules, as for models larger than a device.

Without a GPU the other device is the disk, from which a part's weights are read whenever it runs.
"""

import copy

import pytest
from accelerate import dispatch_model

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.setting import Setting
from compresskv.models import ModelConfig, load
from tests.support import tiny
from tests.support.methods_in_use import FULL, RAGGED, SNAPKV, compresskv

SETTINGS = [FULL, Setting(SNAPKV, 20), Setting(RAGGED, 33), Setting(compresskv(4), 47)]


@pytest.fixture(params=["llama", "qwen2-hybrid"])
def whole_and_spread(request, tmp_path):
    whole = tiny.model(request.param)
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    layers = {f"model.layers.{i}": ("cpu", "disk")[i % 2] for i in range(4)}
    spread = dispatch_model(copy.deepcopy(whole), {**parts, **layers}, main_device="cpu", offload_dir=tmp_path)
    assert {p.device.type for p in spread.parameters()} == {"cpu", "meta"}
    return whole, spread


def test_a_spread_model_gives_the_same_tokens_on_every_path(whole_and_spread):
    whole, spread = whole_and_spread
    layers = 4 if whole.config.model_type == "llama" else 2
    settings = SETTINGS if layers == 4 else SETTINGS[:3]
    ids, stopping = tiny.prompt(90), Stopping(8)
    with attached(whole):
        expected = generate(whole, ids, settings, stopping)
    with attached(spread):
        assert generate(spread, ids, settings, stopping) == expected
        assert generate(spread, ids, settings, stopping, chunk=37) == expected
        assert [generate_in_layer(spread, ids, setting, stopping) for setting in settings] == expected
    with compressed(spread, SNAPKV, budget=20) as cache:
        tokens = spread.generate(ids[None], max_new_tokens=8, do_sample=False, eos_token_id=None, past_key_values=cache)
    assert tokens[0, 90:].tolist() == expected[1].tokens


def test_the_loader_takes_a_map_without_any_gpu(checkpoint):
    spread = load(ModelConfig("tiny", path=str(checkpoint), device="map", dtype="float32"))
    alone = load(ModelConfig("tiny", path=str(checkpoint), device="cpu", dtype="float32"))
    ids = tiny.prompt(90)
    with attached(alone.model), attached(spread.model):
        expected = generate(alone.model, ids, SETTINGS[:2], Stopping(8))
        assert generate(spread.model, ids, SETTINGS[:2], Stopping(8)) == expected
