"""Eviction before the question: every method, and one prefill for all questions of a context."""

from statistics import fmean

import pytest
import torch

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.contexts import ContextStore
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import PromptShape
from tests.methods.construction import METHODS, context, method
from tests.support import naive, tiny
from tests.support.methods_in_use import SNAPKV, evicting_layers, settings_for

NEW = Stopping(6)
CONTEXT, PROMPT = 90, 103
WHERE = context(PromptShape(layers=4, kv_heads=2, length=CONTEXT, window=4), group=3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_on_both_paths_and_masked_by_hand(name):
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    setting = Setting(method(name, WHERE), 40)
    with attached(model):
        (shared,) = generate(model, ids, [setting], NEW, context=CONTEXT)
        assert generate_in_layer(model, ids, setting, NEW, context=CONTEXT) == shared
        kept = prefill(model, ids[:CONTEXT], 32, scorers=setting.scorers(CONTEXT)).kept(setting)
    assert shared.kept == [[len(head) for head in layer] for layer in kept]
    positions = [[set(head.tolist()) for head in layer] for layer in kept]
    masked = naive.generate(model, ids, setting, NEW.max_new_tokens, [0, 1, 2, 3], CONTEXT, positions)
    assert shared.tokens == [int(step.argmax()) for step in masked]


def test_a_setting_that_keeps_the_context_is_the_full_cache():
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    with attached(model):
        whole, full = generate(model, ids, [Setting(SNAPKV, CONTEXT), FULL], NEW, context=CONTEXT)
        assert whole == full
        assert full.tokens == generate(model, ids, [FULL], NEW)[0].tokens


def test_all_questions_of_a_context_share_its_prefill():
    model, text = tiny.model("qwen2-hybrid"), tiny.prompt(CONTEXT)
    prompts = [torch.cat([text, tiny.prompt(length, seed=length)]) for length in (5, 13, 1)]
    other = tiny.prompt(PROMPT, seed=9)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        alone = [generate(model, ids, settings, NEW, context=CONTEXT) for ids in [*prompts, other, prompts[0]]]
        store = ContextStore()
        for ids, expected in zip([*prompts, other, prompts[0]], alone, strict=True):
            assert generate(model, ids, settings, NEW, context=CONTEXT, contexts=store) == expected
        assert store.reused == 2
        generate(model, prompts[0], settings, NEW, chunk=16, context=CONTEXT, contexts=store)
        generate(model, prompts[0], settings[:1], NEW, chunk=16, context=CONTEXT, contexts=store)
    assert store.reused == 2


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid"])
def test_fidelity_counts_the_answer_and_not_the_question(family):
    model, ids, reference = tiny.model(family), tiny.prompt(PROMPT), [5, 17, 40]
    settings = [Setting(SNAPKV, 20), FULL]
    with attached(model):
        generations = generate(model, ids, settings, NEW, reference=reference, context=CONTEXT)
    answer = generations[1].tokens

    def predicted(setting, tokens):
        """Log-probabilities before each of `tokens`: [tokens, vocabulary]."""
        fed = torch.cat([ids[CONTEXT:], torch.tensor(tokens[:-1])])
        with compressed(model, setting.method, setting.budget) as cache, torch.no_grad():
            model(input_ids=ids[None, :CONTEXT], past_key_values=cache)
            out = [model(input_ids=token[None, None], past_key_values=cache).logits[0, -1] for token in fed]
        return torch.stack(out[-len(tokens) :]).log_softmax(-1)

    full = predicted(FULL, answer)
    for setting, generation in zip(settings, generations, strict=True):
        kl = (full.exp() * (full - predicted(setting, answer))).sum(-1).tolist()
        nll = -fmean(predicted(setting, reference)[place, token].item() for place, token in enumerate(reference))
        assert generation.fidelity.kl_per_token == pytest.approx(kl, rel=1e-4, abs=1e-4)
        assert generation.fidelity.kl == pytest.approx(fmean(kl), abs=1e-4)
        assert generation.fidelity.reference_nll == pytest.approx(nll, abs=1e-4)
    assert generations[0].fidelity.kl > 1e-4
    assert generations[1].fidelity.kl == pytest.approx(0, abs=1e-5)
