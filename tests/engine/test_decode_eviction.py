"""Eviction while decoding: shared ≡ in-layer ≡ a reference that rebuilds everything; budgets exact at each eviction."""

import pytest

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import FULL, Setting, prefill
from compresskv.eviction import ObservingScorer, PromptShape
from compresskv.schedule import EvictionSchedule
from tests.methods.construction import METHODS, context, method
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv
from tests.support.naive_decoding import NaiveDecoding
from tests.support.refusals import refused

PROMPT, NEW = 90, Stopping(45)
WHERE = context(PromptShape(layers=4, kv_heads=2, length=PROMPT, window=4), group=3)
DECODING = EvictionSchedule("prompt+decode", 8)
PROTECTED = EvictionSchedule("prompt+decode", 8, "prompt")
SETTINGS = [Setting(SNAPKV, 20), Setting(STREAMING, 24), Setting(compresskv(4), 36), Setting(SNAPKV, 100), FULL]


def naive(model, ids, setting, schedule, context=None):
    length = ids.numel() if context is None else context
    with attached(model):
        kept = prefill(model, ids[:length], 32, scorers=setting.scorers(length)).kept(setting)
    return NaiveDecoding(model, setting, schedule, kept)


@pytest.mark.parametrize("schedule", [DECODING, PROTECTED, EvictionSchedule("prompt+decode", 1)], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_all_paths_agree_token_for_token(family, schedule, layout):
    model, ids = tiny.model(family), tiny.prompt(PROMPT)
    settings = [*SETTINGS, Setting(RAGGED, 40)]
    with attached(model, layout):
        together = generate(model, ids, settings, NEW, schedule=schedule)
        for setting, shared in zip(settings, together, strict=True):
            assert generate_in_layer(model, ids, setting, NEW, schedule=schedule) == shared
    for setting, shared in zip(settings, together, strict=True):
        assert naive(model, ids, setting, schedule).generate(ids, NEW.max_new_tokens) == shared.tokens


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    setting = Setting(method(name, WHERE), 40)
    if name in ("headcompresskv", "adacompresskv"):  # one choice for all heads, of which each holds another number
        with attached(model), refused("eviction.when"):
            generate(model, ids, [setting], NEW, schedule=DECODING)
        return
    for schedule in (DECODING, PROTECTED):
        with attached(model):
            (shared,) = generate(model, ids, [setting], NEW, schedule=schedule)
            assert generate_in_layer(model, ids, setting, NEW, schedule=schedule) == shared
        if not isinstance(setting.method.scorer, ObservingScorer):
            assert naive(model, ids, setting, schedule).generate(ids, NEW.max_new_tokens) == shared.tokens
