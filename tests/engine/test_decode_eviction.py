"""Eviction while decoding: shared ≡ in-layer ≡ a reference that rebuilds everything; budgets exact at each eviction."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from baselines.uniform import UniformAllocator
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache, generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import EvictionMethod, LayerScores, ObservingScorer, PromptShape
from compresskv.schedule import EvictionSchedule
from tests.methods.construction import METHODS, context, method
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv
from tests.support.naive_decoding import NaiveDecoding
from tests.support.refusals import refused

PROMPT, NEW = 90, Stopping(18)
WHERE = context(PromptShape(layers=4, kv_heads=2, length=PROMPT, window=4), group=3)
DECODING = EvictionSchedule("prompt+decode", 8)
PROTECTED = EvictionSchedule("prompt+decode", 8, "prompt")
SETTINGS = [Setting(SNAPKV, 20), Setting(STREAMING, 24), Setting(compresskv(4), 36), Setting(SNAPKV, 100), FULL]


@dataclass(frozen=True)
class KeyNorms:
    """Small keys are kept; there is no window."""

    window: int = 0

    def __call__(self, layer):
        return LayerScores(-layer.keys.norm(dim=-1))


class OtherTokens(LayerScores):
    nested = False


@dataclass(frozen=True)
class ByBudget(KeyNorms):
    def __call__(self, layer):
        return OtherTokens(-layer.keys.norm(dim=-1))


def naive(model, ids, setting, schedule, context=None):
    """The tokens of the reference."""
    length = ids.numel() if context is None else context
    with attached(model):
        kept = prefill(model, ids[:length], 32, scorers=setting.scorers(length)).kept(setting)
    return NaiveDecoding(model, setting, schedule, kept).generate(ids, NEW.max_new_tokens, context)


def agreed(setting, schedule, length=PROMPT):
    """What all paths and, unless the scorer observes the prompt, the reference generate after a prompt."""
    model, ids = tiny.model("llama"), tiny.prompt(length)
    with attached(model):
        (shared,) = generate(model, ids, [setting], NEW, schedule=schedule)
        assert generate_in_layer(model, ids, setting, NEW, schedule=schedule) == shared
    if not isinstance(setting.method.scorer, ObservingScorer):
        assert naive(model, ids, setting, schedule) == shared.tokens
    return shared


@pytest.mark.parametrize(
    ("family", "layout", "schedule"),
    [
        ("qwen3", "sdpa", DECODING),
        ("llama", "masked sdpa", EvictionSchedule("prompt+decode", 1)),
        ("llama", "varlen", PROTECTED),
        ("llama", "flash-attn", DECODING),
    ],
    indirect=["layout"],
)
def test_all_paths_agree_token_for_token(family, layout, schedule):
    model, ids = tiny.model(family), tiny.prompt(PROMPT)
    settings = [*SETTINGS, Setting(RAGGED, 40)]
    expected = [naive(model, ids, setting, schedule) for setting in settings]
    with attached(model, layout):
        together = generate(model, ids, settings, NEW, schedule=schedule)
        alone = [generate_in_layer(model, ids, setting, NEW, schedule=schedule) for setting in settings]
    assert alone == together
    assert [shared.tokens for shared in together] == expected


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    setting = Setting(method(name, WHERE), 40)
    if name in ("headcompresskv", "adacompresskv"):  # one choice for all heads, of which each holds another number
        with refused("eviction.when"):
            agreed(setting, DECODING)
        return
    for schedule in (DECODING, PROTECTED):
        agreed(setting, schedule)


@pytest.mark.parametrize("schedule", [DECODING, PROTECTED], ids=str)
def test_before_the_question_and_while_decoding(schedule):
    """The question's tokens do not count for the interval; they compete, unless the prompt is protected."""
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT + 13)
    with attached(model):
        together = generate(model, ids, SETTINGS, NEW, context=PROMPT, schedule=schedule)
        for setting, shared in zip(SETTINGS, together, strict=True):
            assert generate_in_layer(model, ids, setting, NEW, context=PROMPT, schedule=schedule) == shared
    for setting, shared in zip(SETTINGS, together, strict=True):
        assert naive(model, ids, setting, schedule, PROMPT) == shared.tokens


@pytest.mark.parametrize(
    ("name", "layout"),
    [("snapkv", "sdpa"), ("adakv", "masked sdpa"), ("h2o", "varlen"), ("streaming_llm", "flash-attn")],
    indirect=["layout"],
)
def test_budgets_are_exact_after_every_eviction(name, layout):
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    setting = Setting(method(name, WHERE), 40)
    with attached(model, layout), torch.no_grad():
        cache = LayerwiseCache(model.config, setting, PROMPT, schedule=DECODING)
        model(ids[None], past_key_values=cache)
        kept = [[len(head) for head in layer] for layer in cache.kept]
        for step in range(1, 20):
            model(torch.tensor([[step % 50]]), past_key_values=cache)
            held = [[len(layer.rows.held(row)[0]) for row in range(2)] for layer in cache.evicting]
            since = step % DECODING.interval
            assert held == [[head + since for head in layer] for layer in kept]
    mean = sum(map(sum, kept)) / 8
    assert mean == pytest.approx(40)
    assert cache.eviction.peak(0) == pytest.approx(mean + DECODING.interval)


def test_a_setting_that_never_reaches_its_budget_is_not_evicted(layout):
    model, ids = tiny.model("llama"), tiny.prompt(30)
    settings = [Setting(SNAPKV, 80), Setting(STREAMING, 48), FULL, Setting(method("h2o", WHERE), 90)]
    with attached(model, layout):
        evicting = generate(model, ids, settings, NEW, schedule=DECODING)
        assert [each.tokens for each in evicting] == [each.tokens for each in generate(model, ids, settings, NEW)]


def test_rows_that_stop_early_leave_the_others_as_they_are(layout):
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    long = Stopping(45)  # the rows that stay are evicted several times
    with attached(model, layout):
        whole = generate(model, ids, SETTINGS, long, schedule=DECODING)
        stops = frozenset({whole[0].tokens[11], whole[1].tokens[20]})
        found = generate(model, ids, SETTINGS, Stopping(long.max_new_tokens, stops), schedule=DECODING)
    for each, expected in zip(found, whole, strict=True):
        end = next((place + 1 for place, token in enumerate(expected.tokens) if token in stops), len(expected.tokens))
        assert each.tokens == expected.tokens[:end]
    assert len({len(each.tokens) for each in found}) > 1


def test_fidelity_goes_past_the_stop_tokens_of_the_answer():
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    with attached(model):
        free = generate(model, ids, [FULL], Stopping(30))[0].tokens
        stopping = Stopping(30, frozenset(free[5:6]))
        whole = generate(model, ids, SETTINGS, Stopping(30), reference=[], schedule=DECODING)
        for settings in (SETTINGS, SETTINGS[:-1]):
            found = generate(model, ids, settings, stopping, reference=[], schedule=DECODING, along=30)
            answers = generate(model, ids, settings, stopping, schedule=DECODING)
            assert [replace(each, fidelity=None) for each in found] == answers
            for each, expected in zip(found, whole, strict=False):
                assert each.fidelity.kl_per_token == pytest.approx(expected.fidelity.kl_per_token, abs=1e-4)
        short = generate(model, ids, SETTINGS, Stopping(30), reference=[], schedule=DECODING, along=9)
    assert [len(each.fidelity.kl_per_token) for each in short] == [8] * len(SETTINGS)
    assert short[0].fidelity.kl_per_token == pytest.approx(whole[0].fidelity.kl_per_token[:8], abs=1e-4)


def test_the_public_api_keeps_every_head_below_budget_and_interval():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["attention_mask"] = torch.ones(1, 60, dtype=torch.long)
    with compressed(model, SNAPKV, budget=20, when="prompt+decode", interval=16) as cache:
        tokens = model.generate(ids[None], past_key_values=cache, **options)[0, 60:].tolist()
        sizes = [len(layer.rows.held(row)[0]) for layer in cache.evicting for row in range(2)]
    assert max(sizes) <= 20 + 16
    with attached(model):
        schedule = EvictionSchedule("prompt+decode", 16)
        assert tokens == generate(model, ids, [Setting(SNAPKV, 20)], Stopping(50), schedule=schedule)[0].tokens
    for name, value in (("when", "context"), ("when", "decode"), ("interval", 0), ("protect", "all")):
        with refused(name, value=value), compressed(model, SNAPKV, 20, **{name: value}):
            pass


def test_crop_and_deepcopy_between_evictions():
    """Tokens that were taken back do not count for the interval."""
    model, ids = tiny.model("llama"), tiny.prompt(60)
    following = tiny.prompt(20, seed=5)
    with compressed(model, SNAPKV, 20, when="prompt+decode", interval=8) as cache, torch.no_grad():
        model(ids[None], past_key_values=cache)
        model(following[None, :10], past_key_values=cache)  # evicted after these
        copied = copy.deepcopy(cache)
        model(following[None, 10:13], past_key_values=cache)
        cache.crop(70)
        for token in following[10:]:
            ours = model(token[None, None], past_key_values=cache).logits
            theirs = model(token[None, None], past_key_values=copied).logits
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        with refused("max_length"):
            cache.crop(70)


@pytest.mark.parametrize("budget", [40, 20])
def test_new_tokens_stay_where_the_prompt_fills_the_budget(budget):
    """A scorer without a window would otherwise lose all of them."""
    assert agreed(Setting(EvictionMethod(KeyNorms(), UniformAllocator()), budget), PROTECTED).evicted_later


def test_a_short_prompt_is_evicted_once_its_answer_exceeds_the_budget():
    assert agreed(Setting(SNAPKV, 20), DECODING, length=12).peak_kept <= 20 + DECODING.interval


def test_scores_that_depend_on_the_budget_do_not_protect_the_prompt():
    model, ids = tiny.model("llama"), tiny.prompt(PROMPT)
    setting = Setting(EvictionMethod(ByBudget(), UniformAllocator()), 40)
    with attached(model):
        generate(model, ids, [setting], NEW, schedule=DECODING)
        for new in (NEW, Stopping(1)):  # the first prompt tells, however short its answer is
            with refused("eviction.protect"):
                generate(model, ids, [setting], new, schedule=PROTECTED)
            with refused("eviction.protect"):
                generate_in_layer(model, ids, setting, new, schedule=PROTECTED)
