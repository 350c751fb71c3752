"""Head masking: a masked head gives the mean of the values it may see, while decoding only."""

import pytest
from transformers import DynamicCache

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.masking import Heads, generate_masked
from compresskv.engine.setting import FULL
from tests.support import naive, tiny
from tests.support.methods_in_use import evicting_layers
from tests.support.refusals import refused

NEW = Stopping(10)
SOME: Heads = ((0, 3), (), (5,), (1, 2, 4))
ALL: Heads = (tuple(range(6)),) * 4


def naive_tokens(model, ids, masked: Heads, new: int) -> list[int]:
    """Greedy tokens with softmax written out; masked heads average all values from the last prompt token on."""
    evicting = evicting_layers(model)

    def attention(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        logits, value = naive.logits(query, key, value, scaling, sliding_window)
        out = logits.softmax(-1) @ value
        if query.shape[2] == 1 and module.layer_idx in evicting:
            for head in masked[evicting.index(module.layer_idx)]:
                out[:, head] = value[:, head].mean(1, keepdim=True)
        return out.transpose(1, 2), None

    cache, token, tokens = DynamicCache(), ids[-1:], []
    with naive.attending_by(model, attention):
        model(ids[None, :-1], past_key_values=cache)
        for _ in range(new):
            token = model(token[None], past_key_values=cache).logits[0, -1].argmax()[None]
            tokens.append(int(token))
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
        assert found == [naive_tokens(model, ids, choice, 10) for choice in choices]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_choice_depends_on_no_other_and_leaves_nothing_behind(chunk):
    model, ids = tiny.model("llama"), tiny.prompt(70, seed=2)
    none = ((),) * 4
    with attached(model):
        [full] = generate(model, ids, [FULL], NEW)
        alone = {choice: next(generate_masked(model, ids, [choice], NEW, chunk)) for choice in (none, SOME, ALL)}
        order = [ALL, SOME, none, ALL]
        assert list(generate_masked(model, ids, order, NEW, chunk)) == [alone[choice] for choice in order]
        assert generate(model, ids, [FULL], NEW) == [full]
    assert alone[none] == full != alone[ALL]


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
