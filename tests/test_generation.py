"""Shared ≡ in-layer ≡ a naive reference, token for token; batched ≡ one by one; chunked ≡ whole."""

import gc
import weakref

import pytest
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv import generation
from compresskv.attention import attached
from compresskv.errors import UserError
from compresskv.generation import Setting, Stopping, decode, decode_cache, generate, prefill
from compresskv.in_layer import LayerwiseCache, compressed, generate_in_layer
from tests import naive, tiny
from tests.methods_in_use import FULL, RAGGED, SNAPKV, STREAMING, compresskv

NEW = Stopping(12)


def evicting_layers(model) -> list[int]:
    kinds, _ = get_layer_types_and_kwargs(model.config)
    return [i for i, kind in enumerate(kinds) if kind == "full_attention"]


def settings_for(layers: int) -> list[Setting]:
    return [
        Setting(SNAPKV, 20),
        Setting(SNAPKV, 47),
        Setting(STREAMING, 24),
        Setting(compresskv(max(layers, 1)), 36),
        Setting(RAGGED, 40),
        Setting(SNAPKV, 300),
        Setting(FULL, None),
    ]


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


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "qwen3"])
def test_kept_positions_are_those_of_the_naive_reference(family):
    model, ids = tiny.model(family), tiny.prompt(90, seed=3)
    evicting = evicting_layers(model)
    for setting in settings_for(len(evicting)):
        with attached(model):
            kept = prefill(model, ids, 8).kept(setting)
        found = [[set(positions.tolist()) for positions in layer] for layer in kept]
        assert found == naive.kept_positions(model, ids, setting, evicting)


@pytest.mark.parametrize("setting", settings_for(4), ids=lambda s: f"{type(s.method.scorer).__name__}-{s.budget}")
def test_logits_equal_a_hand_masked_full_cache(setting):
    model, ids = tiny.model("llama"), tiny.prompt(70, seed=5)
    expected = naive.generate(model, ids, setting, 6, list(range(4)))
    with attached(model), torch.no_grad():
        prompt = prefill(model, ids, 8)
        cache = decode_cache(prompt, [prompt.kept(setting)], room=6)
        logits = [prompt.logits]
        for step in range(5):
            token = logits[-1].argmax()[None, None]
            position = torch.tensor([[ids.numel() + step]])
            logits.append(model(token, position_ids=position, past_key_values=cache).logits[0, -1])
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_full_cache_is_transformers_own_generation():
    model, ids = tiny.model("llama"), tiny.prompt(50)
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 50, dtype=torch.long)}
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    with attached(model):
        assert generate(model, ids, [Setting(FULL, None)], NEW)[0].tokens == expected[0, 50:].tolist()


def test_rows_leave_when_they_stop():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = settings_for(4)
    with attached(model):
        free = generate(model, ids, settings, NEW)
        # A stop token that some rows produce, at different steps.
        candidates = {token for g in free for token in g.tokens[1:]}
        stop = max(candidates, key=lambda t: len({g.tokens.index(t) if t in g.tokens else None for g in free}))
        stopped = generate(model, ids, settings, Stopping(12, frozenset([stop])))
    lengths = {len(g.tokens) for g in stopped}
    assert len(lengths) > 1
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 12
        assert after.tokens == before.tokens[:end]


def test_first_tokens_are_never_stops_when_asked():
    model, ids = tiny.model("llama"), tiny.prompt(30)
    with attached(model):
        first = generate(model, ids, [Setting(FULL, None)], NEW)[0].tokens[0]
        stop = frozenset([first])
        assert generate(model, ids, [Setting(FULL, None)], Stopping(5, stop))[0].tokens == [first]
        forced = generate(model, ids, [Setting(FULL, None)], Stopping(5, stop, min_new_tokens=1))[0].tokens
    assert forced[0] != first


@pytest.mark.parametrize("length", [1, 2, 4, 5, 20])
def test_prompts_that_fit_are_kept_whole(length):
    model, ids = tiny.model("llama"), tiny.prompt(length)
    with attached(model):
        full = generate(model, ids, [Setting(FULL, None)], NEW)[0]
        for method in (SNAPKV, STREAMING, RAGGED, compresskv(4)):
            assert generate(model, ids, [Setting(method, 20)], NEW)[0] == full
            assert generate_in_layer(model, ids, Setting(method, 20), NEW) == full


def test_an_empty_prompt_is_refused():
    model = tiny.model("llama")
    with attached(model), pytest.raises(UserError, match="empty"):
        prefill(model, torch.tensor([], dtype=torch.long), 8)


@pytest.mark.parametrize("budget", [0, 3, 4])
def test_a_budget_within_the_window_is_refused(budget):
    with pytest.raises(UserError, match=f"budget={budget}"):
        Setting(SNAPKV, budget)


def test_the_public_api_works_with_generate_and_leaves_the_model_alone():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 60, dtype=torch.long)}
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    before = model(**inputs).logits
    with compressed(model, SNAPKV, budget=20) as cache:
        ours = model.generate(**inputs, **options, past_key_values=cache)[0, 60:].tolist()
    with attached(model):
        assert ours == generate(model, ids, [Setting(SNAPKV, 20)], NEW)[0].tokens
    assert [len(p) for layer in cache.kept for p in layer] == [20] * 8
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)


def test_the_cache_outgrows_its_room():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    with attached(model):
        expected = generate(model, ids, [Setting(SNAPKV, 20)], Stopping(80))[0].tokens
        cache = LayerwiseCache(model.config, Setting(SNAPKV, 20), room=3)
        with torch.no_grad():
            logits = model(ids[None], past_key_values=cache).logits[0, -1]
            assert decode(model, cache, logits, 60, 1, Stopping(80))[0] == expected


def test_refusals():
    model = tiny.model("llama")
    ids = tiny.prompt(40)
    padded = torch.ones(1, 40, dtype=torch.long)
    padded[0, :5] = 0
    with compressed(model, SNAPKV, 20) as cache, pytest.raises(UserError, match="padded"):
        model(ids[None], attention_mask=padded, past_key_values=cache)
    with compressed(model, SNAPKV, 20) as cache, pytest.raises(UserError, match="one prompt at a time"):
        model(ids.expand(2, -1), past_key_values=cache)
    with compressed(model, SNAPKV, 20) as cache, pytest.raises(UserError, match="attention mask"):
        model(ids[None], attention_mask=torch.ones(1, 1, 40, 40, dtype=torch.bool), past_key_values=cache)
    with compressed(model, SNAPKV, 20) as cache, torch.no_grad():
        model(ids[None], past_key_values=cache)
        with pytest.raises(UserError, match="one new token at a time"):
            model(ids[None, :3], past_key_values=cache)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_would_be_wrong_is_refused(name):
    from compresskv.attention import attention_forward

    module = torch.nn.Module().eval()
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UserError, match=name):
        attention_forward(module, q, q, q, None, **{name: torch.ones(1)})


def test_a_model_with_other_layers_is_refused():
    model = tiny.model("llama")
    config = type(model.config)(**tiny.SIZE)
    config.layer_types = ["linear_attention"] * 4
    with pytest.raises(UserError, match="linear_attention"):
        LayerwiseCache(config, Setting(SNAPKV, 20))


@pytest.mark.parametrize("setting", settings_for(4), ids=lambda s: f"{type(s.method.scorer).__name__}-{s.budget}")
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


@pytest.mark.parametrize("setting", [Setting(SNAPKV, 20), Setting(RAGGED, 40)])
def test_in_layer_prefill_holds_one_complete_layer_at_a_time(setting):
    model, ids = tiny.model("llama"), tiny.prompt(300)

    def complete_layers() -> float:
        """Layers whose keys and values of the whole prompt are alive, by the memory they stand in."""
        alive = (t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[-2:] == (300, 16))
        return len({t.untyped_storage().data_ptr() for t in alive if t.shape[-3] == 2}) / 2

    class Watched(LayerwiseCache):
        def _evict(self, layer):
            found.append(complete_layers())
            super()._evict(layer)

    found: list[float] = []
    with attached(model), torch.no_grad():
        model(ids[None], past_key_values=Watched(model.config, setting))
        assert found == [1, 1, 1, 1]
        assert complete_layers() == 0
        shared = prefill(model, ids, 8)
        assert complete_layers() == len(shared.layers) == 4


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

    def cramped(model, cache, logits, length, rows, stopping):
        assert all(batch() is None for batch in tried)
        if rows > limit:
            tried.append(weakref.ref(cache))
            roomy(model, cache, logits, length, rows, Stopping(3))
            raise torch.OutOfMemoryError
        return roomy(model, cache, logits, length, rows, stopping)

    with attached(model):
        expected = generate(model, ids, settings, NEW)
        monkeypatch.setattr(generation, "decode", cramped)
        limit = 2
        found = generate(model, ids, settings, NEW)
        assert found == expected
        assert {g.together for g in found} == {(0,), (1, 2), (3,), (4, 5), (6,)}
        limit = 0
        with pytest.raises(UserError, match="out of memory"):
            generate(model, ids, settings, NEW)
