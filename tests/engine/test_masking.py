"""Head masking: a masked head gives the mean of the values it may see, while decoding only."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.masking import Heads, generate_masked
from compresskv.engine.prefill import FULL
from tests.support import tiny
from tests.support.methods_in_use import evicting_layers
from tests.support.refusals import refused

NEW = Stopping(10)
SOME: Heads = ((0, 3), (), (5,), (1, 2, 4))
ALL: Heads = (tuple(range(6)),) * 4


def naive(model, ids, masked: Heads, new: int) -> list[int]:
    """Greedy tokens with softmax written out; masked heads average all values from the last prompt token on."""
    evicting = evicting_layers(model)

    def attention(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.transpose(2, 3) * scaling
        new_tokens, total = logits.shape[2:]
        row, column = torch.arange(total - new_tokens, total)[:, None], torch.arange(total)
        visible = column <= row
        if sliding_window is not None:
            visible &= column > row - sliding_window
        out = logits.masked_fill(~visible, float("-inf")).softmax(-1) @ value
        if new_tokens == 1 and module.layer_idx in evicting:
            for head in masked[evicting.index(module.layer_idx)]:
                out[:, head] = value[:, head].mean(1, keepdim=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("naive_mean", attention)
    AttentionMaskInterface.register("naive_mean", lambda *args, **kwargs: None)
    original = model.config._attn_implementation
    model.set_attn_implementation("naive_mean")
    cache, token, tokens = DynamicCache(), ids[-1:], []
    try:
        with torch.no_grad():
            model(ids[None, :-1], past_key_values=cache)
            for _ in range(new):
                token = model(token[None], past_key_values=cache).logits[0, -1].argmax()[None]
                tokens.append(int(token))
    finally:
        model.set_attn_implementation(original)
    return tokens


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "qwen3"])
def test_masked_heads_give_the_mean_of_the_values(family):
    model = tiny.model(family)
    layers = len(evicting_layers(model))
    choices = [((),) * layers, SOME[:layers], ALL[:layers]]
    for seed in range(3):
        ids = tiny.prompt(60, seed)
        with attached(model):
            found = [generation.tokens for generation in generate_masked(model, ids, choices, NEW)]
        assert found == [naive(model, ids, choice, 10) for choice in choices]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("chunk", [None, 16])
def test_no_masked_head_is_the_full_cache(chunk):
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with attached(model):
        [expected] = generate(model, ids, [FULL], NEW)
        [found] = generate_masked(model, ids, [((),) * 4], NEW, chunk)
    assert found == expected


def test_a_choice_depends_on_no_other_and_leaves_nothing_behind():
    model, ids = tiny.model("llama"), tiny.prompt(70, seed=2)
    with attached(model):
        alone = [next(generate_masked(model, ids, [choice], NEW)).tokens for choice in (SOME, ALL)]
        together = [g.tokens for g in generate_masked(model, ids, [ALL, SOME, ALL], NEW)]
        before, after = (generate(model, ids, [FULL], NEW)[0].tokens for _ in range(2))
    assert together == [alone[1], alone[0], alone[1]]
    assert before == after != alone[1]


def test_stop_tokens_end_it():
    model, ids = tiny.model("llama"), tiny.prompt(60)
    with attached(model):
        free = next(generate_masked(model, ids, [SOME], NEW)).tokens
        stopped = next(generate_masked(model, ids, [SOME], Stopping(10, frozenset([free[3]])))).tokens
    assert stopped == free[: free.index(free[3]) + 1]


def test_a_prompt_of_one_token_is_refused():
    model = tiny.model("llama")
    with attached(model), refused("prompt"):
        next(generate_masked(model, tiny.prompt(1), [SOME], NEW))
