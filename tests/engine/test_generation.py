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


@pytest.mark.parametrize(
    ("family", "context"),
    [*((family, None) for family in tiny.FAMILIES), ("llama", 77), ("mistral-sliding", 77), ("qwen2-hybrid", 77)],
)
def test_all_paths_agree_token_for_token(family, context):
    """Of the whole prompt, or of a context before a question."""
    model, ids, new = tiny.model(family), tiny.prompt(90), Stopping(6)
    evicting = evicting_layers(model)
    settings = settings_for(len(evicting))
    with attached(model):
        together = generate(model, ids, settings, new, context=context)
        assert generate(model, ids, settings, new, chunk=37, context=context) == together
        assert [generate(model, ids, [setting], new, context=context)[0] for setting in settings] == together
        for chunk in (None, 25):
            assert [generate_in_layer(model, ids, setting, new, chunk, context) for setting in settings] == together
        prompt = prefill(model, ids[:context], 8)
    for setting, shared in zip(settings, together, strict=True):
        expected = naive.kept_positions(model, ids[:context], setting, evicting)
        assert [[set(head.tolist()) for head in layer] for layer in prompt.kept(setting)] == expected
        logits = naive.generate(model, ids, setting, new.max_new_tokens, evicting, context, expected)
        assert shared.tokens == [int(step.argmax()) for step in logits]


def test_full_cache_is_transformers_own_generation():
    model, ids = tiny.model("llama"), tiny.prompt(50)
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 50, dtype=torch.long)}
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    with attached(model):
        assert generate(model, ids, [FULL], NEW)[0].tokens == expected[0, 50:].tolist()


@pytest.mark.parametrize("length", [1, 4, 5, 20])
def test_prompts_that_fit_are_kept_whole(length):
    model, ids = tiny.model("llama"), tiny.prompt(length)
    with attached(model):
        full = generate(model, ids, [FULL], NEW)[0]
        settings = [Setting(method, 20) for method in (SNAPKV, STREAMING, RAGGED, compresskv(4))]
        assert generate(model, ids, settings, NEW) == [full] * 4
        assert [generate_in_layer(model, ids, setting, NEW) for setting in settings] == [full] * 4


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
