"""Shared ≡ in-layer ≡ a naive reference, token for token; batched ≡ one by one; chunked ≡ whole."""

import weakref

import pytest
import torch

from compresskv.engine import generation
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from tests.support import naive, tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv, evicting_layers, settings_for
from tests.support.refusals import refused

NEW = Stopping(12)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_paths_agree_token_for_token(family):
    model = tiny.model(family)
    evicting = evicting_layers(model)
    ids = tiny.prompt(90)
    settings = settings_for(len(evicting))
    with attached(model):
        together = generate(model, ids, settings, NEW)
        for setting, shared in zip(settings, together, strict=True):
            assert generate(model, ids, [setting], NEW) == [shared]
            assert generate(model, ids, [setting], NEW, chunk=37) == [shared]
            assert generate_in_layer(model, ids, setting, NEW) == shared
            assert generate_in_layer(model, ids, setting, NEW, chunk=25) == shared
    for setting, shared in zip(settings, together, strict=True):
        logits = naive.generate(model, ids, setting, NEW.max_new_tokens, evicting)
        assert shared.tokens == [int(step.argmax()) for step in logits]
        with attached(model):
            kept = prefill(model, ids, 8).kept(setting)
        found = [[set(positions.tolist()) for positions in layer] for layer in kept]
        assert found == naive.kept_positions(model, ids, setting, evicting)


def test_full_cache_is_transformers_own_generation():
    model, ids = tiny.model("llama"), tiny.prompt(50)
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 50, dtype=torch.long)}
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    with attached(model):
        assert generate(model, ids, [FULL], NEW)[0].tokens == expected[0, 50:].tolist()


@pytest.mark.parametrize("length", [1, 2, 4, 5, 20])
def test_prompts_that_fit_are_kept_whole(length):
    model, ids = tiny.model("llama"), tiny.prompt(length)
    with attached(model):
        full = generate(model, ids, [FULL], NEW)[0]
        for method in (SNAPKV, STREAMING, RAGGED, compresskv(4)):
            assert generate(model, ids, [Setting(method, 20)], NEW)[0] == full
            assert generate_in_layer(model, ids, Setting(method, 20), NEW) == full


def test_nothing_leaks_from_one_prompt_to_the_next():
    model = tiny.model("llama")
    first, second = tiny.prompt(90, seed=1), tiny.prompt(64, seed=2)
    settings = settings_for(4)
    with attached(model):
        alone = generate(model, second, settings, NEW)
        generate(model, first, settings, NEW)
        assert generate(model, second, settings, NEW) == alone


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    """The device's memory ends in the midst of decoding; when the halves are tried, the whole is gone."""
    model, ids, settings = tiny.model("llama"), tiny.prompt(90), settings_for(4)
    roomy, tried = generation.decode, []

    def cramped(model, cache, logits, length, rows, stopping, ids):
        assert all(batch() is None for batch in tried)
        if rows > limit:
            tried.append(weakref.ref(cache))
            roomy(model, cache, logits, length, rows, Stopping(3), ids)
            raise torch.OutOfMemoryError
        return roomy(model, cache, logits, length, rows, stopping, ids)

    with attached(model):
        expected = generate(model, ids, settings, NEW)
        monkeypatch.setattr(generation, "decode", cramped)
        limit = 2
        found = generate(model, ids, settings, NEW)
        assert found == expected
        assert {g.together for g in found} == {(0,), (1, 2), (3,), (4, 5), (6,)}
        limit = 0
        with refused("prompt"):
            generate(model, ids, settings, NEW)


def test_an_empty_prompt_is_refused():
    model = tiny.model("llama")
    with attached(model), refused("prompt"):
        prefill(model, torch.tensor([], dtype=torch.long), 8)


@pytest.mark.parametrize("budget", [0, 3, 4])
def test_a_budget_within_the_window_is_refused(budget):
    with refused("budget", value=budget):
        Setting(SNAPKV, budget)
