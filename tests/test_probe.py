"""Every architecture generates, with everything kept, what transformers generates, or is refused with the reason."""

import copy
import re
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import generate
from compresskv.engine.model_shape import kv_heads
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import NonFiniteError
from compresskv.models import ModelConfig, load
from compresskv.probe import learned_positions, refuse_unserved
from evals.compose import job
from evals.running.forecast import forecast
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

LATENT = {
    **{"num_key_value_heads": 6, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 8, "v_head_dim": 16},
}

SERVED = [
    "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Gemma", "Gemma3Text", "Phi", "Phi3", "Starcoder2", "Olmo",
    "Olmo2", "Cohere", "Cohere2", "Granite", "StableLm", "Glm", "Glm4", "Nemotron", "SmolLM3", "Exaone4", "GPTNeoX",
    "GPT2", "OPT", "BioGpt", "Persimmon",
]  # fmt: skip

REFUSED = {
    "Gemma2": ({}, "softcap"),
    "GptOss": ({"num_local_experts": 4}, "s_aux"),
    "DeepseekV3": (LATENT, "rebuilds keys after the cache"),
    "Falcon": ({}, "its own code"),
    "Bloom": ({}, "its own code"),
    "Mpt": ({}, "its own code"),
    "XGLM": ({"d_model": 96, "attention_heads": 6, "ffn_dim": 96}, "its own code"),
    "Mamba": ({}, "linear_attention"),
    "Jamba": ({}, "linear_attention"),
    "RecurrentGemma": ({}, "linear_attention|its own code"),  # its configuration names its layers from 5.23 on
    "Llama4Text": ({"num_local_experts": 2, "intermediate_size_mlp": 96, "head_dim": 16}, "chunked_attention"),
    "OpenAIGPT": ({}, "its own code"),
    "Gemma4Text": (
        {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0},
        "layers differ",
    ),
}


def made(architecture: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{architecture}Config")
    size = {**tiny.SIZE, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    known = {name: value for name, value in size.items() if hasattr(kind(), name)}
    config = kind(**{**known, **settings})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", SERVED)
def test_an_architecture_that_is_served_generates_what_transformers_does(architecture):
    model, ids = made(architecture), tiny.prompt(40)
    before = copy.deepcopy(model.state_dict())
    implementation = model.config._attn_implementation
    random = torch.get_rng_state()
    refuse_unserved(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 40:].tolist()
    settings = [FULL, Setting(SNAPKV, 200), Setting(SNAPKV, 20)]
    with attached(model):
        found = generate(model, ids, settings, Stopping(8))
        prompt = prefill(model, ids, 1)
    assert [generation.tokens for generation in found[:2]] == [expected, expected]
    if prompt.layers:
        assert prompt.layers[0].kv_heads == kv_heads(model.config)
    assert Footprint(model, 40).prompt == prompt.nbytes
    assert architecture in ("GPT2", "OPT", "BioGpt") or learned_positions(model) is None
    assert "expected peak" in str(forecast(model, settings, 40, 8))


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_is_not_served_is_refused_with_the_reason(architecture):
    settings, reason = REFUSED[architecture]
    model = made(architecture, **settings)
    implementation = model.config._attn_implementation
    with refused("model", value=type(model).__name__) as caught:
        refuse_unserved(model)
    assert re.search(reason, caught.value.why)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("hidden", ["scaling", "sliding_window"])
def test_attention_that_hides_something_is_seen(monkeypatch, hidden):
    """Its own scaling, which the logits show; a sliding window, which a short prompt would not show."""
    if hidden == "scaling":
        model, attention = made("Llama"), transformers.models.llama.modeling_llama.LlamaAttention
    else:
        model = copy.deepcopy(tiny.model("mistral-sliding"))
        attention = transformers.models.mistral.modeling_mistral.MistralAttention
    inner = attention.forward

    def forward(self, *args, **kwargs):
        with monkeypatch.context() as patched:
            if hidden == "scaling":
                self.scaling = 1.0 if self.config._attn_implementation == "sdpa" else 0.25
            else:
                patched.setattr(self.config, "sliding_window", None)
            return inner(self, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", forward)
    with refused("model"):
        refuse_unserved(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "qwen3"])
def test_half_precision_is_no_reason(family, dtype):
    refuse_unserved(copy.deepcopy(tiny.model(family)).to(dtype))


def test_weights_that_are_not_finite_are_told_from_an_architecture():
    model = made("Llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError):
        refuse_unserved(model)


def test_loading_refuses_before_the_first_prompt(tmp_path):
    tiny.save(tmp_path, made("Bloom"))
    with refused("model.path", value=tmp_path):
        load(ModelConfig("bloom", path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("architecture", ["GPT2", "OPT", "BioGpt", "GPTBigCode"])
def test_learned_positions_are_the_tokens_that_a_forward_takes(architecture):
    model = made(architecture, max_position_embeddings=40)
    assert learned_positions(model) == 40
    for length, takes in ((40, nullcontext()), (41, pytest.raises(IndexError))):
        with takes:
            model(torch.ones(1, length, dtype=torch.int64))


def test_a_longer_window_is_refused_before_any_prompt(tmp_path):
    tiny.save(tmp_path, made("GPT2", max_position_embeddings=40))
    options = {"path": str(tmp_path), "device": "cpu", "dtype": "float32"}
    with refused("model.window", value=41):
        load(ModelConfig("gpt2", window=41, **options))
    assert load(ModelConfig("gpt2", window=40, **options)).window == 40
    model = load(ModelConfig("gpt2", **options))
    assert model.window == 40
    longbench = job("eval=longbench", "model=smollm2-135m", "eval.max_length=41").eval
    with refused("eval.max_length", value=41):
        longbench.make_tasks(model, None)
