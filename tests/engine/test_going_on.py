"""Using a compressed cache further: several tokens at once, questions, second turns, copies."""

import copy

import pytest
import torch

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import decode_cache
from compresskv.engine.forward import forward_given, forward_tokens
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV
from tests.support.refusals import refused

FOLLOWING = tiny.prompt(9, seed=5)
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}


def generated(model, cache, ids, **options):
    """What transformers' own loop generates after `ids` [*]: the new tokens."""
    mask = torch.ones(1, len(ids), dtype=torch.long)
    return model.generate(ids[None], attention_mask=mask, past_key_values=cache, **GREEDY, **options)[0, len(ids) :]


def following(model, cache, tokens):
    """The logits after each of `tokens`, all in one forward: [tokens, vocabulary]."""
    with torch.no_grad():
        return model(input_ids=tokens[None], past_key_values=cache).logits[0]


def one_by_one(model, cache, tokens):
    return torch.cat([following(model, cache, token[None]) for token in tokens])


def assert_near(found, expected):
    """Logits as near as float32 adds them up in another order; one token too many changes them by tenths."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "method"), [("llama", RAGGED), ("mistral-sliding", SNAPKV), ("qwen2-hybrid", SNAPKV)]
)
def test_several_tokens_at_once_are_as_good_as_one_by_one(family, method):
    model, ids = tiny.model(family), tiny.prompt(90)
    with compressed(model, method, 40) as cache:
        following(model, cache, ids)
        other = copy.deepcopy(cache)
        together, apart = following(model, cache, FOLLOWING), one_by_one(model, other, FOLLOWING)
        assert_near(together, apart)
        # And they leave the same cache behind.
        assert_near(following(model, cache, FOLLOWING[:2]), one_by_one(model, other, FOLLOWING[:2]))


@pytest.mark.parametrize("room", [2, 64])
def test_settings_of_a_batch_take_several_tokens_in_every_layout(layout, room):
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with attached(model, layout):
        prompt = prefill(model, ids, 8)
        kept = [prompt.kept(setting) for setting in (FULL, Setting(SNAPKV, 20), Setting(RAGGED, 40))]
        several, single = decode_cache(prompt, kept, room), decode_cache(prompt, kept, room)
        logits = forward_given(model, FOLLOWING, 3, several, 90)
        for i, token in enumerate(FOLLOWING):
            assert_near(logits[:, i], forward_tokens(model, token.expand(3), single, 90 + i))
        # Taken back, one token and then all given again, a row alone, one token more: as if nothing had happened.
        several.crop(90 + 4)
        assert_near(forward_tokens(model, FOLLOWING[4].expand(3), several, 94), logits[:, 4])
        several.crop(90 + 4)
        assert_near(forward_given(model, FOLLOWING[4:], 3, several, 94), logits[:, 4:])
        for cache in (several, single):
            cache.batch_select_indices(torch.tensor([0, 2]))
        assert_near(*(forward_tokens(model, FOLLOWING[:1].expand(2), cache, 99) for cache in (several, single)))


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid"])
def test_a_second_turn_sees_the_compressed_prompt_and_the_first_answer(family):
    model, ids = tiny.model(family), tiny.prompt(90)
    with compressed(model, SNAPKV, 40) as cache:
        turn = torch.cat([ids, generated(model, cache, ids), FOLLOWING])
        second = generated(model, cache, turn)
    with compressed(model, SNAPKV, 40) as cache:
        following(model, cache, ids)
        logits = one_by_one(model, cache, turn[90:])[-1:]
        expected = []
        for _ in range(8):
            expected.append(logits[-1].argmax())
            logits = following(model, cache, expected[-1][None])
    assert second.tolist() == torch.stack(expected).tolist()


def test_many_questions_of_one_compressed_document():
    """Ask, forget, ask again: each answer is that of a separate cache."""
    model, ids = tiny.model("llama"), tiny.prompt(90)
    questions = [tiny.prompt(length, seed=length) for length in (5, 9, 2)]
    with compressed(model, SNAPKV, 40) as cache:
        following(model, cache, ids)
        for question in questions:
            whole = torch.cat([ids, question])
            alone = copy.deepcopy(cache)
            assert generated(model, cache, whole).tolist() == generated(model, alone, whole).tolist()
            cache.crop(90)
            assert cache.get_seq_length() == 90


@pytest.mark.parametrize("forgotten", [14, 18, 22, -1])
@pytest.mark.parametrize(("family", "method"), [("gemma3", SNAPKV), ("qwen2-hybrid", RAGGED)])
def test_forgotten_tokens_leave_nothing_in_sliding_layers_that_are_not_full(family, method, forgotten):
    model, ids, budget = tiny.model(family), tiny.prompt(14), 12 if method is SNAPKV else 13
    tokens = FOLLOWING[:8]
    length = forgotten if forgotten > 0 else 14 + 8 + forgotten
    with compressed(model, method, budget) as cache:
        following(model, cache, ids)
        never = copy.deepcopy(cache)
        following(model, cache, tokens)
        cache.crop(forgotten)
        left = min(length, 22) - 14
        if left:
            following(model, never, tokens[:left])
        assert cache.get_seq_length() == never.get_seq_length() == 14 + left
        for again in (tiny.prompt(3, seed=8), tiny.prompt(20, seed=9)):  # the last fills the windows
            assert_near(following(model, cache, again), following(model, never, again))


def test_a_copy_shares_nothing():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with compressed(model, SNAPKV, 40) as cache:
        following(model, cache, ids)
        other = copy.deepcopy(cache)
        expected = following(model, copy.deepcopy(cache), FOLLOWING)
        following(model, cache, tiny.prompt(9, seed=6))
        assert torch.equal(following(model, other, FOLLOWING), expected)
    with refused("cache"):
        model(FOLLOWING[None], past_key_values=other)


def test_a_prompt_in_chunks_is_compressed_when_it_is_complete():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with compressed(model, SNAPKV, 40) as cache:
        whole = following(model, cache, ids)[-1]
    with compressed(model, SNAPKV, 40, prompt_length=90) as chunked:
        for part in ids.split(40):
            logits = following(model, chunked, part)[-1]
    assert_near(logits, whole)
    for one, other in zip(cache.kept, chunked.kept, strict=True):
        assert [p.tolist() for p in one] == [p.tolist() for p in other]


@pytest.mark.parametrize("compressed_before", [False, True])
def test_prompt_lookup_is_refused(compressed_before):
    """transformers passes the whole text and candidates in its first forward pass, although the cache has tokens."""
    model, ids = tiny.model("llama"), tiny.prompt(30, seed=2).repeat(3)
    with compressed(model, SNAPKV, 40) as cache:
        if compressed_before:
            following(model, cache, ids)
        with refused("position_ids" if compressed_before else "max_length"):
            generated(model, cache, torch.cat([ids, ids[:5]]), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid"])
def test_the_prompt_and_what_a_window_has_dropped_cannot_be_cut(family):
    model, ids = tiny.model(family), tiny.prompt(90)
    with compressed(model, SNAPKV, 40) as cache:
        following(model, cache, ids)
        following(model, cache, FOLLOWING)
        if family == "qwen2-hybrid":
            with refused("max_length"):
                cache.crop(90)
            return
        with refused("max_length"):
            cache.crop(80)
        cache.crop(-9)
        assert cache.get_seq_length() == 90
        with refused("max_length"):
            cache.crop(-1)
        with refused("position_ids", value=0):  # tokens that do not follow the cache
            model(input_ids=ids[None], position_ids=torch.arange(90)[None], past_key_values=cache)
