"""What a checkpoint asks of greedy decoding is applied as transformers applies it, or not at all."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from compresskv.checking import FrozenMapping, frozen
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.setting import FULL, Setting
from compresskv.generation_defaults import defaults_of
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

NEW = 10
IDS = tiny.prompt(60)
SETTINGS = [FULL, Setting(SNAPKV, 200), Setting(SNAPKV, 20)]
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "attention_mask": torch.ones(1, 60, dtype=torch.long)}


def plain(model, **options) -> list[int]:
    return model.generate(IDS[None], **OPTIONS, **options)[0, 60:].tolist()


def asking(settings: dict, stop: list[int]):
    """A tiny model whose checkpoint asks for these settings."""
    model = copy.deepcopy(tiny.model("llama"))
    model.generation_config = GenerationConfig(**settings, eos_token_id=stop or None, pad_token_id=0)
    return model


@pytest.fixture(scope="module")
def greedy() -> list[int]:
    return plain(asking({}, []))


@pytest.mark.parametrize(
    "make",
    [
        lambda greedy: {"repetition_penalty": 1.3},
        lambda greedy: {"no_repeat_ngram_size": 2},
        lambda greedy: {"suppress_tokens": greedy[:2]},
        lambda greedy: {"begin_suppress_tokens": greedy[:1]},
        lambda greedy: {"bad_words_ids": [[greedy[0]], greedy[1:3]]},
        lambda greedy: {"sequence_bias": [[[greedy[0]], -5.0]]},
        lambda greedy: {"forced_eos_token_id": 7},
        lambda greedy: {"min_new_tokens": 7},
        lambda greedy: {"min_length": 67},
        lambda greedy: {"exponential_decay_length_penalty": [2, 1.5]},
        lambda greedy: {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "suppress_tokens": greedy[:1]},
    ],
)
def test_both_paths_and_generate_agree_under_each_value(make, greedy):
    asked, stop = make(greedy), greedy[4:5]
    model = asking(asked, stop)
    assert defaults_of(model.generation_config).keys() == asked.keys()
    honoured = frozen(defaults_of(model.generation_config))
    both = ((honoured, "honoured"), (FrozenMapping(), "ignored"))
    for settings, name in both if len(asked) > 1 else both[:1]:
        stopping = Stopping(NEW, frozenset(stop), settings=settings)
        with attached(model):
            shared = [generation.tokens for generation in generate(model, IDS, SETTINGS, stopping)]
            alone = [generate_in_layer(model, IDS, setting, stopping).tokens for setting in SETTINGS]
        assert shared == alone
        if name == "honoured":
            assert shared[0] == shared[1] == plain(model)
        else:
            assert shared[0] == plain(asking({}, stop))
        with compressed(model, SNAPKV, 20, generation_config=name) as cache:
            assert plain(model, past_key_values=cache) == shared[2]
        assert defaults_of(model.generation_config).keys() == asked.keys()


def test_the_settings_above_change_the_answer(greedy):
    assert plain(asking({"repetition_penalty": 1.3}, [])) != greedy
    assert plain(asking({"suppress_tokens": greedy[:2]}, [])) != greedy


def test_what_generate_is_called_with_applies_inside_the_block():
    model = asking({"repetition_penalty": 1.01}, [])
    with compressed(model, SNAPKV, 200) as cache:
        assert plain(model, past_key_values=cache, repetition_penalty=1.3) == plain(
            asking({}, []), repetition_penalty=1.3
        )


def test_guidance_is_refused():
    model = asking({"guidance_scale": 1.5}, [])
    stopping = Stopping(NEW, settings=frozen(defaults_of(model.generation_config)))
    with attached(model), refused("protocol.generation_config"):
        generate(model, IDS, [FULL], stopping)
