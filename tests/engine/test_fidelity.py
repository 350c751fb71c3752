"""The fidelity of a setting, against the same text fed to each setting separately."""

import weakref
from copy import deepcopy
from statistics import fmean

import pytest
import torch

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.schedule import EvictionSchedule
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV, STREAMING

REFERENCE = [5, 17, 40, 3]
NEW = Stopping(10)


@pytest.mark.parametrize(
    ("family", "context", "schedule"),
    [
        ("llama", None, EvictionSchedule()),
        ("mistral-sliding", None, EvictionSchedule()),
        ("qwen3", 77, EvictionSchedule()),
        ("qwen2-hybrid", 77, EvictionSchedule()),
        ("llama", None, EvictionSchedule("prompt+decode", 4)),
    ],
    ids=str,
)
def test_it_equals_feeding_each_setting_by_itself(family, context, schedule):
    """It counts the answer, and not the question after a context."""
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = [Setting(STREAMING, 24), Setting(SNAPKV, 20), FULL, Setting(SNAPKV, 200)]
    with attached(model):
        options = {"reference": REFERENCE, "context": context, "schedule": schedule}
        generations = generate(model, ids, settings, NEW, **options)

    def predicted(setting, tokens):
        """Log-probabilities before each of `tokens`, which are fed one by one: [tokens, vocabulary]."""
        length = context or len(ids)
        given = {"when": schedule.when, "interval": schedule.interval}
        with compressed(model, setting.method, setting.budget, **given) as cache, torch.no_grad():
            parts = [ids[:length], *ids[length:, None], *torch.tensor(tokens[:-1])[:, None]]
            steps = [model(input_ids=part[None], past_key_values=cache).logits[0, -1] for part in parts]
        return torch.stack(steps[-len(tokens) :]).log_softmax(-1)

    answer, first = generations[2].tokens, 1 if context is None else 0  # all settings predict the same after a prompt
    full = predicted(FULL, answer)
    for setting, generation in zip(settings, generations, strict=True):
        other = predicted(setting, answer)
        kl = (full.exp() * (full - other)).sum(-1)[first:].tolist()
        agreement = (full.argmax(-1) == other.argmax(-1))[first:].float().mean().item()
        nll = -predicted(setting, REFERENCE)[range(len(REFERENCE)), REFERENCE].mean().item()
        assert generation.fidelity.kl_per_token == pytest.approx(kl, rel=1e-4, abs=1e-4)
        assert generation.fidelity.kl == pytest.approx(fmean(generation.fidelity.kl_per_token), abs=1e-12)
        assert generation.fidelity.agreement == pytest.approx(agreement)
        assert generation.fidelity.reference_nll == pytest.approx(nll, abs=1e-4)
    evicts = bool(generations[0].kept)  # a model of sliding windows alone has nothing to evict
    assert [generation.fidelity.kl > 1e-4 for generation in generations] == [evicts, evicts, False, False]
    assert [generation.fidelity.agreement for generation in generations[2:]] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_control_is_the_full_cache_in_another_batch(dtype):
    """It is as far from itself as the kernels of another batch make it; and changes no other value."""
    model, ids = deepcopy(tiny.model("llama")).to(dtype), tiny.prompt(90)
    settings = [Setting(SNAPKV, 20), FULL, Setting(SNAPKV, 30)]
    with attached(model):
        evicted, full, other = (each.fidelity for each in generate(model, ids, settings, NEW, reference=REFERENCE))
        (alone,) = (each.fidelity for each in generate(model, ids, [FULL], NEW, reference=REFERENCE))
    assert evicted.control is other.control is alone.control is None
    assert len(full.control.kl_per_token) == len(full.kl_per_token)
    assert min(full.control.kl_per_token) >= 0
    assert max(full.control.kl_per_token) < (1e-5 if dtype == torch.float32 else 0.05) < evicted.kl
    assert 0 <= full.control.agreement <= 1
    assert (full.kl, full.agreement) == (pytest.approx(alone.kl, abs=1e-5), alone.agreement)


def test_it_depends_neither_on_the_other_settings_nor_on_the_memory():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = [FULL, Setting(SNAPKV, 20), Setting(SNAPKV, 30), Setting(SNAPKV, 40)]
    with attached(model):
        together = generate(model, ids, settings, NEW, reference=REFERENCE)
        scarce = generate(model, ids, settings, NEW, memory=1, reference=REFERENCE)
        alone = generate(model, ids, [settings[2]], NEW, reference=REFERENCE)[0]
        plain = generate(model, ids, settings, NEW)
    for one, other in zip(together, scarce, strict=True):
        assert one.fidelity.kl == pytest.approx(other.fidelity.kl, abs=1e-4)
        assert one.fidelity.reference_nll == pytest.approx(other.fidelity.reference_nll, abs=1e-4)
    assert alone.fidelity.kl == pytest.approx(together[2].fidelity.kl, abs=1e-4)
    assert [each.tokens for each in plain] == [each.tokens for each in together]


@pytest.mark.parametrize("rows", [1.5, 2.5, 4])
def test_it_takes_no_more_than_the_memory(monkeypatch, rows):
    """The full cache beside each batch counts, and so does the one that reads alone for the control."""
    model, ids, held = tiny.model("llama"), tiny.prompt(200), []
    of = EvictedCache.hold

    def hold(self, *arguments):
        of(self, *arguments)
        held.append(weakref.ref(self))
        alive = {id(cache): cache for cache in (each() for each in held) if cache is not None}
        peaks.append(sum(cache.nbytes for cache in alive.values()))

    monkeypatch.setattr(EvictedCache, "hold", hold)
    settings, peaks = [FULL, *(Setting(SNAPKV, budget) for budget in (20, 60, 100))], []
    with attached(model):
        prompt = prefill(model, ids, 4)
        prompt.score(settings)
        row, smallest, _, largest = (prompt.row_bytes(prompt.kept(each), NEW.max_new_tokens) for each in settings)
        limit = int(prompt.nbytes + rows * row)
        generate(model, ids, settings, NEW, memory=limit, reference=REFERENCE)
    # The full cache beside one setting; and alone and beside the smallest setting, for the control.
    least = max(row + largest, 2 * row + smallest)
    assert max(peaks) <= max(limit - prompt.nbytes, least)


def test_a_method_without_a_budget_is_the_full_cache():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    assert Setting(SNAPKV, None) == FULL
    with attached(model):
        schedule = EvictionSchedule("prompt+decode", 4)
        (found,) = generate(model, ids, [Setting(SNAPKV, None)], Stopping(12), reference=[], schedule=schedule)
    assert found.fidelity.kl == pytest.approx(0, abs=1e-5)


def test_an_answer_of_one_token_and_no_reference_give_nothing():
    model, ids = tiny.model("llama"), tiny.prompt(40)
    with attached(model):
        (generation,) = generate(model, ids, [Setting(SNAPKV, 20)], Stopping(1), reference=[])
    nothing = {"kl": None, "agreement": None, "reference_nll": None, "kl_per_token": [], "control": None}
    assert vars(generation.fidelity) == nothing
