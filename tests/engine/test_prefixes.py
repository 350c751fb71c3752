"""Chunks that an earlier prompt computed: bit for bit those that would be computed, within the memory given to them."""

import pytest
import torch

from compresskv.engine import decode
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.prefill import prefill
from compresskv.engine.prefixes import PrefixStore, chunk_names, in_prefix_order
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import PromptShape, observers
from evals.running.forecast import forecast
from tests.methods.construction import METHODS, context, method
from tests.support import tiny
from tests.support.methods_in_use import settings_for

CHUNK, WINDOW = 16, 8
NEW = Stopping(4)
WHERE = context(PromptShape(layers=4, kv_heads=2, length=150, window=4), group=3)
PLENTY = 1 << 30
LENGTHS_AND_DEPTHS = [(150, 60), (96, 76), (160, 0), (150, 130), (100, 33), (150, 95), (144, 124)]


def prompts():
    """A haystack with something else in it, at several lengths and depths."""
    text, needle, question = tiny.prompt(140, seed=1), tiny.prompt(9, seed=2), tiny.prompt(11, seed=3)
    made = []
    for length, depth in LENGTHS_AND_DEPTHS:
        made.append(torch.cat([text[:depth], needle, text[depth : length - 20], question]))
    return made


def model_of(family, dtype=torch.float32):
    torch.manual_seed(0)
    model = tiny.FAMILIES[family]().eval().to(dtype)
    model.set_attn_implementation("sdpa")
    return model


def same_bits(one, other):
    """Whether two prefills are equal in every bit that scorers and decoding see."""
    pairs = [(one.logits, other.logits)]
    for layer, expected in zip(one.layers, other.layers, strict=True):
        pairs += [(getattr(layer, name), getattr(expected, name)) for name in ("queries", "keys", "values")]
    for place, expected in other.cache.sliding.items():
        sliding = one.cache.sliding[place]
        pairs += [(sliding.keys, expected.keys), (sliding.values, expected.values)]
        assert sliding.cumulative_length == expected.cumulative_length
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("family", "dtype"), [("mistral-sliding", torch.float32), ("qwen2-hybrid", torch.bfloat16)], ids=str
)
def test_what_is_reused_is_bit_for_bit_what_is_computed(family, dtype):
    model = model_of(family, dtype)
    with attached(model):
        alone = [prefill(model, ids, WINDOW, CHUNK) for ids in prompts()]
        for order in (range(7), reversed(range(7)), (4, 2), (6, 0, 6)):  # the short ones: after a kill
            store, tokens = PrefixStore(PLENTY), 0
            for place in order:
                assert same_bits(prefill(model, prompts()[place], WINDOW, CHUNK, (), store), alone[place])
                tokens += prompts()[place].numel()
            assert store.reused > 0 or tokens < 300
            assert store.reused + store.computed == tokens


def test_every_method_keeps_the_same_and_generates_the_same():
    model, store = model_of("llama", torch.bfloat16), PrefixStore(PLENTY)
    settings = [FULL, *(Setting(method(name, WHERE), budget) for name in METHODS for budget in (40, 90))]
    observing = [setting for setting in settings if observers(setting.scorers(150))]
    settings = [setting for setting in settings if setting not in observing]
    with attached(model):
        for ids in prompts()[:4]:
            expected = generate(model, ids, settings, NEW, chunk=CHUNK)
            alone, reusing = prefill(model, ids, 32, CHUNK), prefill(model, ids, 32, CHUNK, (), store)
            for setting in settings:
                for layer, others in zip(reusing.kept(setting), alone.kept(setting), strict=True):
                    assert all(torch.equal(*heads) for heads in zip(layer, others, strict=True))
            assert generate(model, ids, settings, NEW, chunk=CHUNK, prefixes=store) == expected
        assert store.reused > store.computed
        store.reused = 0
        for ids in prompts()[:3]:  # with an observer of all queries, everything is computed
            expected = generate(model, ids, [*settings[:2], *observing], NEW, chunk=CHUNK)
            assert generate(model, ids, [*settings[:2], *observing], NEW, chunk=CHUNK, prefixes=store) == expected
    assert observing
    assert store.reused == 0


def test_a_wider_window_is_always_computed():
    model, store, ids = model_of("llama"), PrefixStore(PLENTY), tiny.prompt(100)
    with attached(model):
        prefill(model, ids, 1, CHUNK, (), store)
        store.computed = 0
        for window in (1, 5, 40, 130):
            assert same_bits(prefill(model, ids, window, CHUNK, (), store), prefill(model, ids, window, CHUNK))
    assert store.computed == 4 + 20 + 52 + 100  # back to a multiple of 16, at least the window


def test_a_full_store_lets_go_of_what_was_used_least_recently():
    model, ids = model_of("llama"), tiny.prompt(200)
    one_chunk = 4 * CHUNK * 2 * 2 * 16 * 4  # layers, tokens, keys and values, KV heads, head_dim, float32
    for chunks in range(8):
        store = PrefixStore(chunks * one_chunk + 5)
        with attached(model):
            prefill(model, ids, WINDOW, CHUNK, (), store)
            assert store.nbytes == chunks * one_chunk
            prefill(model, tiny.prompt(60, seed=9), WINDOW, CHUNK, (), store)  # three whole chunks of another text
            assert store.nbytes <= store.capacity
            store.reused = 0
            assert same_bits(prefill(model, ids, WINDOW, CHUNK, (), store), prefill(model, ids, WINDOW, CHUNK))
        # What is left of a prompt is its beginning.
        assert store.reused == max(chunks - 3, 0) * CHUNK


def test_a_trimmed_store_keeps_beginnings():
    model, store, ids = model_of("qwen2-hybrid"), PrefixStore(PLENTY), tiny.prompt(200)
    with attached(model):
        prefill(model, ids, WINDOW, CHUNK, (), store)
        held = store.nbytes
        store.trim(held // 2)
        assert 0 < store.nbytes <= held // 2
        assert same_bits(prefill(model, ids, WINDOW, CHUNK, (), store), prefill(model, ids, WINDOW, CHUNK))
        assert 0 < store.reused < 100
        store.close()
        prefill(model, ids, WINDOW, CHUNK, (), store)
    assert store.nbytes == 0


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_what_the_settings_need_of_the_memory_is_given_up(monkeypatch, share):
    """Prompt, store and the largest batch stay within `memory`, and batches are those without a store."""
    model, settings = model_of("llama"), settings_for(4)
    decode_cache, moments = decode.decode_cache, []

    def measured(prompt, kept, room, last):
        taken = prompt.nbytes + sum(prompt.row_bytes(setting, room) for setting in kept)
        moments.append((store.nbytes, taken))
        return decode_cache(prompt, kept, room, last)

    with attached(model):
        roomy = forecast(model, settings, 160, 4, CHUNK, sequences=1)
        assert roomy.prefixes == roomy.prompt
        assert "prefixes of earlier prompts" in str(roomy)
        memory = int(share * (roomy.peak - roomy.used))
        expected = forecast(model, settings, 160, 4, CHUNK, memory, sequences=1)
        assert expected.prefixes == 0 or expected.peak - expected.used <= memory
        store = PrefixStore(roomy.prefixes)
        together = [
            [g.together for g in generate(model, ids, settings, NEW, chunk=CHUNK, memory=memory)] for ids in prompts()
        ]
        monkeypatch.setattr(decode, "decode_cache", measured)
        for ids, batches in zip(prompts(), together, strict=True):
            found = generate(model, ids, settings, NEW, chunk=CHUNK, memory=memory, prefixes=store)
            assert [g.together for g in found] == batches
    assert all(stored == 0 or stored + taken <= memory for stored, taken in moments)
    assert share < 1 or max(stored for stored, _ in moments) > 0


def test_no_prompt_is_named_like_another():
    ids = tiny.prompt(70)
    names = chunk_names(ids, 16)
    assert len(names) == 4
    assert chunk_names(ids[:33], 16) == names[:2]
    assert chunk_names(ids, 32)[0] not in names
    changed = ids.clone()
    changed[3] += 1
    assert not set(chunk_names(changed, 16)) & set(names)


def test_prompts_that_begin_alike_follow_each_other():
    a, b = tiny.prompt(64, seed=1), tiny.prompt(64, seed=2)
    texts = {"a": a, "b": b, "ab": torch.cat([a[:32], b]), "aa": torch.cat([a, a]), "ba": torch.cat([b[:48], a])}
    names = {id: chunk_names(ids, 16) for id, ids in texts.items()}
    assert in_prefix_order(names) == ["a", "aa", "ab", "b", "ba"]
    alike = {id: [] for id in ("3", "1", "2")}
    assert in_prefix_order(alike) == ["3", "1", "2"]
