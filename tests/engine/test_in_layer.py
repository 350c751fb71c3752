"""Eviction inside each layer: the public API, and what is alive meanwhile."""

import copy
import gc

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GenerationConfig

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache, generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.installed import CHUNKS_GO_ON, generate_argument
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, name_of, settings_for
from tests.support.refusals import refused
from tests.test_probe import LATENT, made

NEW = Stopping(12)
MASK = torch.ones(1, 60, dtype=torch.long)
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": MASK}


def test_the_public_api_works_with_generate_and_leaves_the_model_alone():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    before = model(ids[None]).logits
    with compressed(model, SNAPKV, budget=20) as cache:
        ours = model.generate(ids[None], past_key_values=cache, **{**OPTIONS, "max_new_tokens": 12})[0, 60:].tolist()
    with attached(model):
        assert ours == generate(model, ids, [Setting(SNAPKV, 20)], NEW)[0].tokens
    assert [len(p) for layer in cache.kept for p in layer] == [20] * 8
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids[None]).logits, before)


@pytest.mark.parametrize("name", ["num_return_sequences", "num_beams"])
@pytest.mark.parametrize("given_in", ["call", "config", "model"])
def test_several_sequences_are_refused_by_the_name_of_their_argument(monkeypatch, name, given_in):
    model, ids = tiny.model("llama"), tiny.prompt(60)[None]
    config = GenerationConfig(max_new_tokens=2, do_sample=True, pad_token_id=0)  # beams alone would not be valid
    given = {"generation_config": config, **({name: 2} if given_in == "call" else {})}
    if given_in == "config":
        setattr(config, name, 2)
    elif given_in == "model":
        given = {}
        for setting, value in (("do_sample", True), (name, 2)):
            monkeypatch.setattr(model.generation_config, setting, value)
    with refused(name, value=2), compressed(model, SNAPKV, 20, generation_config="honoured") as cache:
        model.generate(ids, attention_mask=MASK, **given, **{generate_argument(): cache})
    with compressed(model, SNAPKV, 20) as cache:
        options = {"num_return_sequences": 1, "num_beams": 1, "max_new_tokens": 2, generate_argument(): cache}
        assert model.generate(ids, attention_mask=MASK, **options).shape == (1, 62)


def test_in_layer_prefill_holds_one_complete_layer_at_a_time():
    model, ids = tiny.model("llama"), tiny.prompt(300)

    def complete_layers() -> float:
        """Layers whose keys and values of the whole prompt are alive, by their storages."""
        alive = (t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[-2:] == (300, 16))
        return len({t.untyped_storage().data_ptr() for t in alive if t.shape[-3] == 2}) / 2

    class Watched(LayerwiseCache):
        def _evict(self, layer):
            found.append(complete_layers())
            super()._evict(layer)

    found: list[float] = []
    with attached(model), torch.no_grad():
        model(ids[None], past_key_values=Watched(model.config, Setting(RAGGED, 40)))
        assert found == [1, 1, 1, 1]
        assert complete_layers() == 0
        shared = prefill(model, ids, 8)
        assert complete_layers() == len(shared.layers) == 4


def test_a_cache_is_refused_after_its_block_and_if_it_is_not_passed():
    """The model's own attention would see the new tokens alone; and every budget would equal the full cache."""
    model, ids = tiny.model("llama"), tiny.prompt(60)
    with compressed(model, SNAPKV, 20) as cache:
        model.generate(ids[None], past_key_values=cache, **OPTIONS)
    with refused("cache"):
        model(ids[None, :1], past_key_values=cache)
    with refused("cache"), compressed(model, SNAPKV, 20):
        model.generate(ids[None], **OPTIONS)
    with pytest.raises(ZeroDivisionError), compressed(model, SNAPKV, 20):  # the error inside is the one that is seen
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("architecture", "settings", "new"), [("DeepseekV3", LATENT, 1), ("Bloom", {}, 4)])
def test_attention_that_goes_past_the_cache_is_refused(architecture, settings, new):
    model, ids = made(architecture, **settings), tiny.prompt(60)
    with refused("model"), compressed(model, SNAPKV, 20) as cache:
        model.generate(ids[None], past_key_values=cache, **{**OPTIONS, "max_new_tokens": new})
    config = type(tiny.model("llama").config)(**tiny.SIZE)
    config.layer_types = ["linear_attention"] * 4
    with refused("model"):
        LayerwiseCache(config, Setting(SNAPKV, 20))


CHUNKED = {
    "argument": lambda model: {"prefill_chunk_size": 7},
    "config": lambda model: {"generation_config": GenerationConfig(prefill_chunk_size=7)},
    "model": lambda model: setattr(model.generation_config, "prefill_chunk_size", 7) or {},
}


@pytest.mark.parametrize(
    ("family", "place"), [("llama", "argument"), ("mistral-sliding", "config"), ("qwen2-hybrid", "model")]
)
def test_chunks_of_generate_are_one_prompt_and_a_second_generate_follows(family, place):
    """Also without `prompt_length`; the second is refused where transformers would pass all tokens again."""
    model, ids = copy.deepcopy(tiny.model(family)), tiny.prompt(60)

    def turns(length=None, options=OPTIONS, **second):
        with compressed(model, SNAPKV, 20, prompt_length=length) as cache:
            out = model.generate(ids[None], past_key_values=cache, **options)
            kept = [[len(head) for head in layer] for layer in cache.kept]
            longer = torch.cat([out[0], tiny.prompt(20, 3)])[None]
            following = {**options, "attention_mask": torch.ones_like(longer), **second}
            return out.tolist(), kept, model.generate(longer, past_key_values=cache, **following).tolist()

    whole = turns()
    chunked = {**OPTIONS, **CHUNKED[place](model)}
    for length in (None, 60):
        assert turns(length, chunked, prefill_chunk_size=None) == whole
    if Version(transformers.__version__) >= Version(CHUNKS_GO_ON):
        assert turns(None, chunked) == whole
    else:
        with pytest.raises(UserError):
            turns(None, chunked)


def test_the_block_needs_no_gradients_and_refuses_them():
    model, ids = copy.deepcopy(tiny.model("llama")), tiny.prompt(60)
    assert any(parameter.requires_grad for parameter in model.parameters())
    with compressed(model, SNAPKV, 20) as cache:
        logits = model(ids[None], past_key_values=cache).logits
        assert not logits.requires_grad
        model(ids[None, :5], past_key_values=cache)
        cache.crop(60)
        copy.deepcopy(cache)
        with torch.enable_grad(), refused("cache"):
            model(ids[None, :5], past_key_values=cache)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["mistral-sliding", "qwen2-hybrid"])
def test_a_prompt_that_never_came_whole_is_said_to_be_shorter(family):
    model, ids = tiny.model(family), tiny.prompt(60)
    with refused("prompt_length", value=100), compressed(model, SNAPKV, 20, prompt_length=100) as cache:
        model(ids[None], past_key_values=cache)
    with compressed(model, SNAPKV, 20, prompt_length=62) as cache:  # generated tokens are not the prompt's rest
        with refused("prompt_length", value=62):
            model.generate(ids[None], past_key_values=cache, **OPTIONS)
        model(tiny.prompt(62)[None], past_key_values=cache)


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
