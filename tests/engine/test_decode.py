"""Decoding: logits of a hand-masked full cache, rows that stop, rows that outgrow their buffers."""

import copy

import pytest
import torch

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache, generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import NonFiniteError
from tests.support import naive, tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, name_of, settings_for
from tests.support.refusals import refused

NEW = Stopping(12)


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
