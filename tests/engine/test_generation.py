"""Shared ≡ in-layer ≡ a naive reference, token for token: prompts, contexts before questions, and rows that stop."""

import copy
import weakref

import pytest
import torch

from compresskv.engine import generation
from compresskv.engine.attention import attached
from compresskv.engine.contexts import ContextStore
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache, generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import NonFiniteError
from compresskv.eviction import PromptShape
from tests.methods.construction import METHODS, context, method
from tests.support import naive, tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv, evicting_layers, name_of, settings_for
from tests.support.refusals import refused

NEW, FEW = Stopping(12), Stopping(6)


@pytest.mark.parametrize(
    ("family", "context"),
    [
        ("llama", None),
        ("qwen3", None),
        ("mistral-sliding", None),
        ("qwen2-hybrid", None),
        ("llama", 77),
        ("mistral-sliding", 77),
        ("qwen2-hybrid", 77),
    ],
)
def test_all_paths_agree_token_for_token(family, context):
    """Of the whole prompt, or of a context before a question."""
    model, ids = tiny.model(family), tiny.prompt(90)
    evicting = evicting_layers(model)
    settings = settings_for(len(evicting))
    with attached(model):
        together = generate(model, ids, settings, FEW, context=context)
        assert generate(model, ids, settings, FEW, chunk=37, context=context) == together
        assert [generate(model, ids, [setting], FEW, context=context)[0] for setting in settings] == together
        for chunk in (None, 25):
            assert [generate_in_layer(model, ids, setting, FEW, chunk, context) for setting in settings] == together
        prompt = prefill(model, ids[:context], 8)
    for setting, shared in zip(settings, together, strict=True):
        expected = naive.kept_positions(model, ids[:context], setting, evicting)
        assert [[set(head.tolist()) for head in layer] for layer in prompt.kept(setting)] == expected
        logits = naive.generate(model, ids, setting, FEW.max_new_tokens, evicting, context, expected)
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


CONTEXT, PROMPT = 90, 103
WHERE = context(PromptShape(layers=4, kv_heads=2, length=CONTEXT, window=4), group=3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_on_both_paths_and_masked_by_hand(name):
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    setting = Setting(method(name, WHERE), 40)
    with attached(model):
        (shared,) = generate(model, ids, [setting], FEW, context=CONTEXT)
        assert generate_in_layer(model, ids, setting, FEW, context=CONTEXT) == shared
        kept = prefill(model, ids[:CONTEXT], 32, scorers=setting.scorers(CONTEXT)).kept(setting)
    assert shared.kept == [[len(head) for head in layer] for layer in kept]
    positions = [[set(head.tolist()) for head in layer] for layer in kept]
    masked = naive.generate(model, ids, setting, FEW.max_new_tokens, [0, 1, 2, 3], CONTEXT, positions)
    assert shared.tokens == [int(step.argmax()) for step in masked]


def test_a_setting_that_keeps_the_context_is_the_full_cache():
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    with attached(model):
        whole, full = generate(model, ids, [Setting(SNAPKV, CONTEXT), FULL], FEW, context=CONTEXT)
        assert whole == full
        assert full.tokens == generate(model, ids, [FULL], FEW)[0].tokens


def test_all_questions_of_a_context_share_its_prefill():
    model, text = tiny.model("qwen2-hybrid"), tiny.prompt(CONTEXT)
    prompts = [torch.cat([text, tiny.prompt(length, seed=length)]) for length in (5, 13, 1)]
    other = tiny.prompt(PROMPT, seed=9)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        alone = [generate(model, ids, settings, FEW, context=CONTEXT) for ids in [*prompts, other, prompts[0]]]
        store = ContextStore()
        for ids, expected in zip([*prompts, other, prompts[0]], alone, strict=True):
            assert generate(model, ids, settings, FEW, context=CONTEXT, contexts=store) == expected
        assert store.reused == 2
        generate(model, prompts[0], settings, FEW, chunk=16, context=CONTEXT, contexts=store)
        generate(model, prompts[0], settings[:1], FEW, chunk=16, context=CONTEXT, contexts=store)
    assert store.reused == 2


@pytest.mark.parametrize("setting", settings_for(4), ids=name_of)
def test_logits_equal_a_hand_masked_full_cache(setting):
    model, ids = tiny.model("llama"), tiny.prompt(70, seed=5)
    expected = naive.generate(model, ids, setting, 6, list(range(4)))
    with attached(model), torch.no_grad():
        prompt = prefill(model, ids, 8)
        cache = decode_cache(prompt, [prompt.kept(setting)], room=6)
        logits = [prompt.logits]
        for step in range(5):
            logits.append(forward_tokens(model, logits[-1].argmax()[None], cache, ids.numel() + step)[0])
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_first_tokens_are_never_stops_when_asked():
    model, ids = tiny.model("llama"), tiny.prompt(30)
    with attached(model):
        first = generate(model, ids, [FULL], NEW)[0].tokens[0]
        stop = frozenset([first])
        assert generate(model, ids, [FULL], Stopping(5, stop))[0].tokens == [first]
        forced = generate(model, ids, [FULL], Stopping(5, stop, min_new_tokens=1))[0].tokens
    assert forced[0] != first


def test_the_cache_outgrows_its_room():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    with attached(model):
        expected = generate(model, ids, [Setting(SNAPKV, 20)], Stopping(80))[0].tokens
        cache = LayerwiseCache(model.config, Setting(SNAPKV, 20), room=3)
        with torch.no_grad():
            logits = model(ids[None], past_key_values=cache).logits[0, -1]
            assert decode(model, cache, logits, 60, 1, Stopping(80))[0] == expected


@pytest.mark.parametrize("setting", [Setting(SNAPKV, 20), Setting(RAGGED, 40), FULL], ids=name_of)
@pytest.mark.parametrize("broken", ["prefill", "decode"])
def test_logits_that_are_not_finite_are_no_answer(setting, broken):
    """One infinite weight: of a layer, or of the embedding of the first token that is generated."""
    model, ids = copy.deepcopy(tiny.model("llama")), tiny.prompt(40)
    with attached(model):
        first = generate(model, ids, [FULL], NEW)[0].tokens[0]
        with torch.no_grad():
            if broken == "prefill":
                model.model.layers[2].mlp.down_proj.weight[3, 3] = torch.inf
            else:
                model.model.embed_tokens.weight[first, 0] = torch.nan
        ids = ids[ids != first]
        with refused("model.dtype", NonFiniteError):
            generate(model, ids, [setting], NEW)
        with refused("model.dtype", NonFiniteError):
            generate_in_layer(model, ids, setting, NEW)


def test_a_single_infinite_logit_is_enough():
    model, ids = copy.deepcopy(tiny.model("llama")), tiny.prompt(30)
    with torch.no_grad(), attached(model):
        model.lm_head.weight[5] = -torch.inf
        with pytest.raises(NonFiniteError):
            generate(model, ids, [FULL], NEW)
