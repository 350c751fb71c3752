"""RoPE that depends on the length of the text: each text is served as transformers' own `generate` serves it alone."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.fidelity import fidelity
from compresskv.engine.forward import forward_tokens
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.joined import WaitingCache, join
from compresskv.engine.masking import generate_masked
from compresskv.engine.prefill import forward_prompt, prefill
from compresskv.engine.prefixes import PrefixStore
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import PromptError, UserError
from compresskv.probe import refuse_unserved
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

BOUNDARY = 32
SIZE = {**tiny.SIZE, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 2}
LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)], "rope_theta": 10000.0}
NTK = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def longrope(spelling):
    given = {spelling: {**LONGROPE, "type" if spelling == "rope_scaling" else "rope_type": "longrope"}}
    return Phi3Config(**{**SIZE, "max_position_embeddings": 128}, original_max_position_embeddings=BOUNDARY, **given)


def per_layer_type():
    full = {**LONGROPE, "rope_type": "longrope", "original_max_position_embeddings": BOUNDARY, "factor": 4.0}
    return Gemma3TextConfig(
        **{**SIZE, "head_dim": 16},
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    )


MODELS = {
    "longrope": lambda: Phi3ForCausalLM(longrope("rope_scaling")),
    "longrope-parameters": lambda: Phi3ForCausalLM(longrope("rope_parameters")),
    "ntk": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZE, "max_position_embeddings": BOUNDARY}, rope_parameters=NTK)),
    "per-layer-type": lambda: Gemma3ForCausalLM(per_layer_type()),
}
PER_LAYER_TYPE = pytest.param(
    "per-layer-type",
    marks=pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.21"),
        reason="transformers 5.20 itself fails at a second text beyond the boundary",
    ),
)
NAMES = ["longrope", "ntk", PER_LAYER_TYPE]
SWITCHING = ["longrope", PER_LAYER_TYPE]


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.set_attn_implementation("sdpa")
    return model


def own(model, ids, new, **options):
    """transformers' own `generate`."""
    mask = torch.ones(1, ids.numel(), dtype=torch.int64)
    return model.generate(
        ids[None], attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, **options
    )


def plain(name, ids, new):
    """What a new model generates by itself, and the logits of its first new token."""
    out = own(made(name), ids, new, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, ids.numel() :].tolist(), out.logits[0][0]


every_rope = pytest.mark.parametrize("name", NAMES)


def ours(model, ids, new, setting=FULL, chunk=None, **options):
    with attached(model):
        return generate(model, ids, [setting], Stopping(new), chunk=chunk, **options)[0]


@pytest.mark.parametrize("length", [20, BOUNDARY, BOUNDARY + 1])
@pytest.mark.parametrize("name", [*NAMES, "longrope-parameters"])
def test_a_prompt_is_exact_whatever_came_before(name, length):
    model, ids, new = made(name), tiny.prompt(length), 1 if length == BOUNDARY else 6
    refuse_unserved(model)
    own(model, tiny.prompt(90, 1), 2)  # before it is attached, too
    expected, logits = plain(name, ids, new)
    for _ in range(2):
        assert ours(model, ids, new).tokens == expected
        ours(model, tiny.prompt(80, 1), 2)
    with attached(model):
        assert torch.allclose(prefill(model, ids, 1).logits, logits, atol=1e-4)
    # And the model is left so that it does the same by itself.
    assert own(model, ids, new)[0, length:].tolist() == expected


@every_rope
@pytest.mark.parametrize(("length", "chunk"), [(BOUNDARY, 8), (BOUNDARY + 1, BOUNDARY), (60, 8), (60, 40)])
def test_chunks_have_the_rope_of_the_whole_prompt(name, length, chunk):
    model, ids = made(name), tiny.prompt(length)
    expected, logits = plain(name, ids, 1)
    with attached(model):
        whole, chunked = prefill(model, ids, 8), prefill(model, ids, 8, chunk)
        in_layer = generate_in_layer(model, ids, Setting(SNAPKV, 20), Stopping(1), chunk)
    assert torch.allclose(chunked.logits, logits, atol=1e-4)
    for one, other in zip(whole.layers, chunked.layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=1e-4)
    assert in_layer.tokens == expected


@every_rope
@pytest.mark.parametrize("lengths", [(60, 28), (28, 60), (60, 50)])
def test_prefixes_are_shared_only_between_prompts_of_the_same_rope(name, lengths):
    model, ids, chunk = made(name), tiny.prompt(60), 8
    store = PrefixStore(1 << 30)
    with attached(model):
        for length in lengths:
            found = prefill(model, ids[:length], 8, chunk, prefixes=store)
            assert torch.allclose(found.logits, prefill(model, ids[:length], 8).logits, atol=1e-4)
    shared = lengths == (60, 50) and name != "ntk"
    assert bool(store.reused) == shared


@pytest.mark.parametrize("name", SWITCHING)
@pytest.mark.parametrize(("length", "new"), [(30, 4), (30, 20), (BOUNDARY, 2)])
def test_an_answer_that_would_cross_a_switch_is_refused_for_this_prompt_alone(name, length, new):
    model, ids = made(name), tiny.prompt(length)
    for setting in (FULL, Setting(SNAPKV, 20)):
        with refused("max_new_tokens", PromptError, value=new):
            ours(model, ids, new, setting)
        with attached(model), refused("prompt", PromptError):
            generate_in_layer(model, ids, setting, Stopping(new))
    with pytest.raises(PromptError):
        ours(model, ids, 1, reference=list(range(new)))
    fitting = BOUNDARY + 1 - length
    assert ours(model, ids, fitting).tokens == plain(name, ids, fitting)[0]


def test_dynamic_ntk_crosses_as_transformers_does():
    model, ids = made("ntk"), tiny.prompt(28)
    settings = [FULL, Setting(SNAPKV, 200), Setting(SNAPKV, 20)]
    with attached(model):
        reference = tiny.prompt(20, 5).tolist()
        together = generate(model, ids, settings, Stopping(20), reference=reference)
        alone = [generate(model, ids, [setting], Stopping(20))[0].tokens for setting in settings]
        one_by_one = generate(model, ids, settings, Stopping(20), memory=1, reference=reference)
    expected, _ = plain("ntk", ids, 20)
    assert [each.tokens for each in together] == alone == [each.tokens for each in one_by_one]
    assert alone[:2] == [expected, expected]
    assert together[1].fidelity.kl == pytest.approx(0, abs=1e-4)
    assert together[1].fidelity.agreement == 1


def test_fidelity_gives_each_token_the_rope_of_the_text_up_to_it():
    model, ids, reference = made("ntk"), tiny.prompt(28), tiny.prompt(20, 5)
    with attached(model):
        prompt = prefill(model, ids, 1)
        found = fidelity(model, prompt, {0: prompt.kept(FULL)}, [1], reference.tolist(), 1 << 40)[0].reference_nll
    model, cache, total = made("ntk"), None, 0.0
    for fed, target in zip([ids, *reference[:-1, None]], reference, strict=True):
        out = model(fed[None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        total -= out.logits[0, -1].log_softmax(-1)[target].item()
    assert found == pytest.approx(total / 20, abs=1e-4)


@every_rope
@pytest.mark.parametrize("length", [28, 60])
def test_masking_no_head_is_the_full_cache(name, length):
    model, ids = made(name), tiny.prompt(length)
    new = 4 if length == 28 else 8
    with attached(model):
        heads = ((),) * len(prefill(model, ids, 1).layers)
        found = next(generate_masked(model, ids, [heads], Stopping(new), 8)).tokens
    assert found == plain(name, ids, new)[0]


@every_rope
@pytest.mark.parametrize(("length", "chunks"), [(20, {}), (60, {}), (60, {"prefill_chunk_size": 8})])
def test_compressed_and_generate_evict_on_both_sides(name, length, chunks):
    model, ids, new = made(name), tiny.prompt(length), 6
    ours(model, tiny.prompt(80, 1), 2)
    evicted = ours(made(name), ids, new, Setting(SNAPKV, 12)).tokens
    for budget, expected in ((None, plain(name, ids, new)[0]), (12, evicted)):
        with compressed(model, SNAPKV, budget) as cache:
            out = own(model, ids, new, past_key_values=cache, **chunks)
        assert out[0, length:].tolist() == expected
        assert {positions.numel() for layer in cache.kept for positions in layer} == {budget or length}


@pytest.mark.parametrize("name", SWITCHING)
def test_compressed_and_generate_do_not_cross_a_switch(name):
    model, ids = made(name), tiny.prompt(28)
    with pytest.raises(UserError), compressed(model, SNAPKV, 12) as cache:
        own(model, ids, 12, past_key_values=cache)
    assert "generate" not in vars(model)
    assert torch.equal(own(model, ids, 12), own(made(name), ids, 12))


def test_a_model_that_leaves_the_cache_behind_is_caught_even_with_an_ordinary_rope():
    config = Phi3Config(**{**SIZE, "max_position_embeddings": BOUNDARY}, original_max_position_embeddings=BOUNDARY)
    model, ids = Phi3ForCausalLM(config).eval(), tiny.prompt(28)
    with refused("model", value="Phi3ForCausalLM"), compressed(model, SNAPKV, 12) as cache:
        own(model, ids, 12, past_key_values=cache)
    assert len(ours(model, ids, 12, Setting(SNAPKV, 12)).tokens) == 12


def test_the_models_own_forward_beside_a_compressed_cache_is_its_own_text():
    model, long, short = made("ntk"), tiny.prompt(60), tiny.prompt(20, 3)
    expected = made("ntk")(short[None]).logits
    with torch.no_grad(), compressed(model, SNAPKV, 12, prompt_length=60) as cache:
        model(long[None, :30], past_key_values=cache)
        beside = model(short[None]).logits
        out = model(long[None, 30:], past_key_values=cache, position_ids=torch.arange(30, 60)[None])
    assert torch.allclose(beside, expected, atol=1e-4)
    assert torch.allclose(out.logits[0, -1], made("ntk")(long[None]).logits[0, -1], atol=1e-4)


@pytest.mark.parametrize(("lengths", "served"), [((20, 26), True), ((60, 60), True), ((28, 60), False)])
def test_prompts_of_another_rope_do_not_decode_together(lengths, served):
    model, prompts, tokens = made("ntk"), [], []
    with attached(model):
        for length in lengths:
            prompts.append(WaitingCache(model.config, FULL, length))
            tokens.append(forward_prompt(model, tiny.prompt(length), prompts[-1], None).argmax())
        cache = join(prompts, 4)
        with nullcontext() if served else pytest.raises(UserError):
            forward_tokens(model, torch.stack(tokens), cache, torch.tensor(lengths))


def test_other_models_are_left_alone():
    def hooks(model):
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())

    for model, hooked in ((tiny.model("llama"), False), (made("longrope"), True)):
        before = hooks(model)  # transformers may have some
        with attached(model):
            assert (hooks(model) > before) is hooked
        assert hooks(model) == before
