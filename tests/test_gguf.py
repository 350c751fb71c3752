"""GGUF files: every key and tensor is honoured, harmless or refused by name."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compresskv import checkpoints, gguf_file, gguf_model
from compresskv.errors import UserError
from compresskv.models import ModelConfig, load
from tests.support.gguf_files import BOS, EOS, EOT, FAMILIES, PIECES, SENTENCEPIECE, TOKENS, model, write
from tests.support.refusals import assert_about, refused


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))


def copy_of(path):
    return checkpoints.from_gguf([path], None)[0]


def loaded(path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(copy_of(path), attn_implementation="sdpa").eval()


def logits(made: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(0, 200, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return made(ids).logits


def assert_equal(made: PreTrainedModel, expected: PreTrainedModel) -> None:
    ours, theirs = logits(made), logits(expected)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.std()


def refusal_of(path) -> str:
    """The message that refuses a file before its model is made."""
    with pytest.raises(UserError) as caught:
        checkpoints.from_gguf([path], None)
    assert_about(caught.value, caught.value.field)
    return str(caught.value)


def assert_identity_follows_what_is_lost(path) -> None:
    """Assert that the identity is the file's exactly where transformers reads all of it.

    Copies and results of files that were read completely stay valid; the others are made again.
    """
    meaning = gguf_model.meaning(gguf_file.read([path]), "digest")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type == "mistral":
        assert "model_type" in meaning.lost
        return
    wrong = {name for name, value in meaning.config.items() if getattr(config, name, None) != value}
    assert set(meaning.lost) - {"tokenizer", "stop_ids"} == wrong
    assert (meaning.identity("digest") == "digest") == (not meaning.lost)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_the_model_that_it_was_written_from(tmp_path, family):
    made = model(family)
    path = write(tmp_path / "m.gguf", family, made)
    assert_equal(loaded(path), made)
    assert_identity_follows_what_is_lost(path)


def llama3_factors(factor, original, low=1.0, high=4.0, rotated=16, theta=10000.0):
    """As llama.cpp's converter computes `rope_freqs.weight`."""
    factors = []
    for position in range(0, rotated, 2):
        wavelength = 2 * math.pi * theta ** (position / rotated)
        smooth = (original / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(factor if wavelength > original / low else 1.0 if wavelength < original / high else between)
    return factors


def rope(kind, theta=10000.0, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


def llama3(factor, original, low=1.0, high=4.0):
    """Llama 3's scaling as config.json has it, and its tensor in a GGUF file."""
    bounds = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
    factors = torch.tensor(llama3_factors(factor, original, low, high))
    return rope("llama3", factor=factor, **bounds), {"rope_freqs.weight": factors}


def scaling(family, **keys):
    return {f"{family}.rope.scaling.{name}": value for name, value in keys.items()}


YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
WIDER, WIDER_TENSORS = llama3(4.0, 128, 2.0, 8.0)
LLAMA_31, LLAMA_31_TENSORS = llama3(8.0, 8192)
LLAMA_32, LLAMA_32_TENSORS = llama3(32.0, 64)
LONGROPE = {"long_factor": [1.0, 1.5, 2, 3, 4, 5, 6, 7], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]}
FACTORS = {f"rope_factors_{kind}.weight": torch.tensor(LONGROPE[f"{kind}_factor"]) for kind in ("long", "short")}
LOCAL, FULL = {"rope_type": "default", "rope_theta": 10000.0}, {"rope_type": "default", "rope_theta": 1e6}


def both(local=(), full=()):
    return {
        "rope_parameters": {"sliding_attention": {**LOCAL, **dict(local)}, "full_attention": {**FULL, **dict(full)}}
    }


HONOURED: dict[str, tuple[Any, ...]] = {
    "base": ("llama", rope("default", 5e5)),
    "base of qwen2": ("qwen2", rope("default", 1e6)),
    "base of starcoder2": ("starcoder2", rope("default", 1e5)),
    "base of stablelm": (
        "stablelm",
        rope("default", 5e5, partial_rotary_factor=0.25),
        {"stablelm.rope.freq_base": 5e5},
    ),
    "linear": ("llama", rope("linear", factor=4.0), scaling("llama", type="linear", factor=4.0)),
    "linear without a type": ("qwen3", rope("linear", factor=2.0), scaling("qwen3", factor=2.0)),
    "linear under its old key": ("llama", rope("linear", factor=2.0), {"llama.rope.scale_linear": 2.0}),
    "no scaling": ("llama", {}, scaling("llama", type="none", factor=2.0)),
    "yarn": (
        "qwen2",
        rope("yarn", factor=4.0, original_max_position_embeddings=64),
        scaling("qwen2", **YARN, finetuned=True),
    ),
    "yarn with other bounds": (
        "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0),
        scaling("llama", **YARN, yarn_beta_fast=16.0, yarn_beta_slow=2.0),
    ),
    "Llama 3.1": ("llama", LLAMA_31, {}, LLAMA_31_TENSORS),
    "Llama 3.2, of a shorter original": (
        "llama",
        LLAMA_32,
        scaling("llama", original_context_length=64),
        LLAMA_32_TENSORS,
    ),
    "other bounds than Llama 3.1's": ("llama", WIDER, {}, WIDER_TENSORS),
    "frequencies that change nothing": ("qwen2", {}, {}, {"rope_freqs.weight": torch.ones(8)}),
    "longrope": (
        "phi3",
        {
            **rope("longrope", **LONGROPE, attention_factor=1.2, original_max_position_embeddings=128),
            "original_max_position_embeddings": 128,
        },
        scaling("phi3", original_context_length=128, attn_factor=1.2),
        FACTORS,
    ),
    "partial rotary": ("phi3", rope("default", partial_rotary_factor=0.75)),
    "a sliding window": ("phi3", {"sliding_window": 40}),
    "a window of other layers": (
        "gemma3",
        {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]},
        {"gemma3.attention.sliding_window_pattern": 2},
    ),
    "a window of layers one by one": (
        "gemma3",
        {"layer_types": ["full_attention"] + ["sliding_attention"] * 6},
        {"gemma3.attention.sliding_window_pattern": [False] + [True] * 6},
    ),
    "no window": ("gemma3", {"layer_types": ["full_attention"] * 7}, {"gemma3.attention.sliding_window": 0}),
    "another global base": ("gemma3", both(full={"rope_theta": 5e5}), {"gemma3.rope.freq_base": 5e5}),
    "another local base": ("gemma3", both(local={"rope_theta": 3e4}), {"gemma3.rope.freq_base_swa": 3e4}),
    "global scaling": (
        "gemma3",
        both(full={"rope_type": "linear", "factor": 8.0}),
        scaling("gemma3", type="linear", factor=8.0),
    ),
    "a softcap": ("gemma3", {"final_logit_softcapping": 3.0}, {"gemma3.final_logit_softcapping": 3.0}),
    "a scale of attention": ("gemma3", {"query_pre_attn_scalar": 100}, {"gemma3.attention.scale": 0.1}),
    "the scale of attention of the head": ("llama", {}, {"llama.attention.scale": 0.25}),
    "another epsilon": ("llama", {"rms_norm_eps": 0.1}),
    "heads of another size": ("llama", {"head_dim": 32}, {"llama.attention.key_length": 32}),
    "heads of another size of qwen2": ("qwen2", {"head_dim": 32}, {"qwen2.attention.key_length": 32}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("gpt2", {"tie_word_embeddings": False}),
    "parallel": ("stablelm", {"use_parallel_residual": True}),
    "experts": ("qwen2moe", {"num_experts_per_tok": 3, "moe_intermediate_size": 48}),
    "a longer context": ("gpt2", {"n_positions": 2048}),
    "an inner size": ("gpt2", {"n_inner": 96}, {"gpt2.feed_forward_length": 96}),
    "what changes nothing": (
        "llama",
        {},
        {
            "general.name": "mistral",
            "general.file_type": 1,
            "general.sampling.temp": 0.6,
            "general.sampling.penalty_repeat": 1.0,
            "quantize.imatrix.file": "imatrix.dat",
            "llama.attention.causal": True,
            "llama.expert_count": 0,
            "llama.logit_scale": 1.0,
            "llama.attention.sliding_window": 0,
            "split.count": 1,
            "tokenizer.ggml.fim_pre_token_id": 3,
            "tokenizer.chat_template.tool_use": "{{ tools }}",
        },
    ),
}


@pytest.mark.parametrize("what", HONOURED)
def test_what_a_file_says_reaches_the_model(tmp_path, what):
    family, changes, keys, tensors = (*HONOURED[what], {}, {}, {})[:4]
    usual = {} if family != "gemma3" else both()
    made = model(family, **{**usual, **changes})
    path = write(tmp_path / "m.gguf", family, made, keys=keys, tensors=tensors)
    assert_equal(loaded(path), made)
    assert_identity_follows_what_is_lost(path)
    if changes and what not in ("the scale of attention of the head", "tied", "untied", "a longer context"):
        plain = model(family, **usual)
        same_shape = {k: v.shape for k, v in made.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        if same_shape:  # and the change is one that the logits show
            plain.load_state_dict(made.state_dict())
            assert (logits(plain) - logits(made)).abs().max() > 1e-2 * logits(made).std()


TOKENIZERS = {
    "GPT-2": ({}, "hello  12", ["hello", "Ġ", "Ġ", "12"]),
    "single digits": ({"tokenizer.ggml.pre": "starcoder"}, "hello  12", ["hello", "ĠĠ", "1", "2"]),
    "the default model's": ({"tokenizer.ggml.pre": "smollm"}, "hello  12", ["hello", "ĠĠ", "1", "2"]),
    "a split that transformers knows": ({"tokenizer.ggml.pre": "qwen2"}, "12", ["1", "2"]),
    "whole words": ({"tokenizer.ggml.pre": "llama-bpe"}, "hellooo", ["hellooo"]),
    "no whole words": ({}, "hellooo", ["hello", "o", "o"]),
    "BOS": ({"tokenizer.ggml.add_bos_token": True}, "hello", ["<s>", "hello"]),
    "EOS": ({"tokenizer.ggml.add_eos_token": True}, "hello", ["hello", "</s>"]),
    "special tokens": ({}, "hello</s>", ["hello", "</s>"]),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_text_becomes_the_tokens_that_the_file_says(tmp_path, what):
    keys, text, tokens = TOKENIZERS[what]
    tokenizer = AutoTokenizer.from_pretrained(copy_of(write(tmp_path / "m.gguf", "llama", model("llama"), keys=keys)))
    assert tokenizer.tokenize(text, add_special_tokens=True) == tokens


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gemma3", "qwen2")])
def test_text_is_split_as_the_file_says_in_each_family(tmp_path, family):
    path = write(tmp_path / "m.gguf", family, model(family), keys={"tokenizer.ggml.pre": "starcoder"})
    assert AutoTokenizer.from_pretrained(copy_of(path)).tokenize("hello  12") == ["hello", "ĠĠ", "1", "2"]


def test_a_split_that_does_not_survive_in_its_family_is_refused(tmp_path):
    """transformers loads every tokenizer of a qwen2 model as Qwen2's own."""
    path = write(tmp_path / "m.gguf", "qwen2", model("qwen2"), keys={"tokenizer.ggml.pre": "starcoder"})
    assert "tokenizer.ggml.pre" in refusal_of(path)


def test_a_file_that_does_not_say_so_begins_a_text_as_its_family_does(tmp_path):
    keys, without = {"tokenizer.ggml.pre": "llama-bpe"}, ("tokenizer.ggml.add_bos_token",)
    path = write(tmp_path / "m.gguf", "llama", model("llama"), keys=keys, without=without)
    assert AutoTokenizer.from_pretrained(copy_of(path))("hello").input_ids[0] == BOS
    path = write(tmp_path / "o.gguf", "llama", model("llama"), without=without)
    assert AutoTokenizer.from_pretrained(copy_of(path))("hello").input_ids[0] != BOS


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        ({}, ["<s>", "▁", "hello"]),
        ({"tokenizer.ggml.add_space_prefix": True}, ["<s>", "▁", "hello"]),
        ({"tokenizer.ggml.add_space_prefix": False}, ["<s>", "hello"]),
        ({"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False}, ["hello"]),
    ],
)
def test_sentencepiece_adds_a_space_where_the_file_says(tmp_path, keys, tokens):
    made = model("llama", vocab_size=len(PIECES), bos_token_id=1, eos_token_id=2)
    folder = copy_of(write(tmp_path / "m.gguf", "llama", made, keys=keys, tokenizer=SENTENCEPIECE))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("hello", add_special_tokens=True) == tokens
    assert tokenizer.decode(tokenizer("hello 12").input_ids, skip_special_tokens=True) == "hello 12"


def test_an_answer_ends_at_each_of_the_end_tokens_of_the_file(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", model("llama"), keys={"tokenizer.ggml.eot_token_id": EOT})
    made = load(ModelConfig("m", path=str(path), chat_template=False, device="cpu"))
    assert made.stop_ids == {EOS, EOT}
    plain = load(ModelConfig("m", path=str(write(tmp_path / "o.gguf", "llama", model("llama"))), chat_template=False))
    assert plain.stop_ids == {EOS}


def test_the_template_is_the_file_s(tmp_path):
    keys = {"tokenizer.chat_template": "{{ messages[0]['content'] }}!", "tokenizer.chat_template.rag": "{{ other }}"}
    path = write(tmp_path / "m.gguf", "llama", model("llama"), keys=keys)
    assert load(ModelConfig("m", path=str(path), device="cpu")).chat("hello") == "hello!"


def test_what_lies_beside_a_file_is_not_read_with_it(tmp_path):
    made = model("llama")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": "another's"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    path = write(tmp_path / "m.gguf", "llama", made)
    plain = load(ModelConfig("m", path=str(path), chat_template=False, device="cpu"))
    assert plain.stop_ids == {EOS}
    assert plain.tokenizer.chat_template is None
    assert plain.encode("hello").tolist() == plain.tokenizer.convert_tokens_to_ids(["hello"])


ODD = torch.ones(64)
REFUSED: dict[str, tuple[Any, ...]] = {
    "llama.rope.scaling.type": ("llama", {"llama.rope.scaling.type": "su"}),
    "rope_factors_long.weight": ("phi3", {"phi3.rope.scaling.type": "longrope"}),
    "llama.rope.scaling.yarn_attn_factor": ("llama", {"llama.rope.scaling.yarn_attn_factor": 1.1}),
    "llama.rope.scaling.yarn_ext_factor": (
        "llama",
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5},
    ),
    "llama.rope.scaling.alpha": ("llama", {"llama.rope.scaling.alpha": 1000.0}),
    "qwen2.rope.scaling.attn_factor": ("qwen2", {"qwen2.rope.scaling.attn_factor": 1.1}),
    "llama.rope.freq_base": ("llama", {"llama.rope.freq_base": math.nan}),
    "llama.rope.freq_base_swa": ("llama", {"llama.rope.freq_base_swa": 5e5}),
    "qwen3.rope.dimension_sections": ("qwen3", {"qwen3.rope.dimension_sections": [4, 4, 0, 0]}),
    "llama.rope.dimension_count": ("llama", {"llama.rope.dimension_count": 8}),
    "qwen2.rope.dimension_count": ("qwen2", {"qwen2.rope.dimension_count": 8}),
    "rope_freqs.weight": ("llama", {}, {"rope_freqs.weight": torch.ones(4)}),
    "llama.attention.sliding_window": ("llama", {"llama.attention.sliding_window": 32}),
    "qwen2.attention.sliding_window": ("qwen2", {"qwen2.attention.sliding_window": 32}),
    "gemma3.attention.sliding_window_pattern": ("gemma3", {"gemma3.attention.sliding_window_pattern": [True]}),
    "llama.attn_logit_softcapping": ("llama", {"llama.attn_logit_softcapping": 50.0}),
    "gemma3.attn_logit_softcapping": ("gemma3", {"gemma3.attn_logit_softcapping": 50.0}),
    "qwen2.final_logit_softcapping": ("qwen2", {"qwen2.final_logit_softcapping": 30.0}),
    "llama.attention.scale": ("llama", {"llama.attention.scale": 0.5}),
    "llama.logit_scale": ("llama", {"llama.logit_scale": 0.5}),
    "llama.residual_scale": ("llama", {"llama.residual_scale": 0.22}),
    "llama.embedding_scale": ("llama", {"llama.embedding_scale": 12.0}),
    "llama.expert_count": ("llama", {"llama.expert_count": 8}),
    "llama.expert_weights_norm": ("llama", {"llama.expert_weights_norm": True}),
    "qwen3moe.expert_shared_count": ("qwen3moe", {"qwen3moe.expert_shared_count": 1}),
    "llama.attention.causal": ("llama", {"llama.attention.causal": False}),
    "llama.attention.clamp_kqv": ("llama", {"llama.attention.clamp_kqv": 8.0}),
    "llama.attention.max_alibi_bias": ("llama", {"llama.attention.max_alibi_bias": 8.0}),
    "qwen2.pooling_type": ("qwen2", {"qwen2.pooling_type": 3}),
    "qwen3.attention.value_length": ("qwen3", {"qwen3.attention.value_length": 16}),
    "llama.attention.layer_norm_rms_epsilon": ("llama", {"llama.attention.layer_norm_rms_epsilon": -1.0}),
    "llama.attention.layer_norm_epsilon": ("llama", {"llama.attention.layer_norm_epsilon": 1e-5}),
    "llama.attention.head_count": ("llama", {"llama.attention.head_count": [4, 4]}),
    "stablelm.use_parallel_residual": ("stablelm", {"stablelm.use_parallel_residual": True}),
    "general.architecture": ("llama", {"general.architecture": "falcon"}),
    "general.type": ("llama", {"general.type": "adapter"}),
    "general.sampling.penalty_repeat": ("llama", {"general.sampling.penalty_repeat": 1.1}),
    "llama.unheard_of": ("llama", {"llama.unheard_of": 1}),
    "qwen2.rope.freq_base": ("llama", {"qwen2.rope.freq_base": 1e6}),
    "blk.1.attn_q_norm.weight": ("llama", {}, {"blk.1.attn_q_norm.weight": ODD}),
    "blk.0.attn_sinks.weight": ("qwen3", {}, {"blk.0.attn_sinks.weight": ODD}),
    "output.bias": ("phi3", {}, {"output.bias": ODD}),
    "cls.weight": ("qwen2", {}, {"cls.weight": ODD}),
    "tokenizer.ggml.pre": ("llama", {"tokenizer.ggml.pre": "deepseek-llm"}),
    "tokenizer.ggml.model": ("llama", {"tokenizer.ggml.model": "bert"}),
    "tokenizer.ggml.model=llama": ("qwen2", {"tokenizer.ggml.model": "llama"}),
    "tokenizer.ggml.model=gpt2": ("gemma3", {"tokenizer.ggml.model": "gpt2"}),
    "tokenizer.ggml.precompiled_charsmap": ("llama", {"tokenizer.ggml.precompiled_charsmap": [1, 2]}),
    "tokenizer.ggml.remove_extra_whitespaces": ("llama", {"tokenizer.ggml.remove_extra_whitespaces": True}),
    "tokenizer.ggml.add_space_prefix": ("llama", {"tokenizer.ggml.add_space_prefix": True}),
    "tokenizer.ggml.add_sep_token": ("llama", {"tokenizer.ggml.add_sep_token": True}),
    "tokenizer.ggml.token_type": ("llama", {"tokenizer.ggml.token_type": [1, 2]}),
    "tokenizer.ggml.eos_token_id": ("llama", {"tokenizer.ggml.eos_token_id": 10**6}),
    "tokenizer.ggml.eot_token_id": ("llama", {"tokenizer.ggml.eot_token_id": 10**6}),
    "llama.vocab_size": ("llama", {"llama.vocab_size": 10**9}),
    "llama.block_count": ("llama", {"llama.block_count": 10**9}),
    "split.count": ("llama", {"split.count": 3}),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_served_is_refused_by_its_name(tmp_path, key):
    family, keys, tensors = (*REFUSED[key], {})[:3]
    said = refusal_of(write(tmp_path / "m.gguf", family, model(family), keys=keys, tensors=tensors))
    assert key in said
    assert str(tmp_path / "m.gguf") in said
    assert not (tmp_path / "cache" / "models").exists()


@pytest.mark.parametrize(
    "key",
    [
        "llama.rope.dimension_count",
        "llama.attention.head_count_kv",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.context_length",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
    ],
)
def test_a_key_that_is_missing_is_named_where_the_model_depends_on_it(tmp_path, key):
    path = write(tmp_path / "m.gguf", "llama", model("llama"), without=(key,))
    if key == "llama.rope.dimension_count":
        assert_equal(loaded(path), model("llama"))
    else:
        assert key in refusal_of(path)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", {"llama.feed_forward_length": 10**9}),
        ("llama", {"llama.embedding_length": 1 << 31, "llama.rope.dimension_count": 1 << 29}),
        ("llama", {"llama.attention.key_length": 1 << 30, "llama.rope.dimension_count": 1 << 30}),
        ("qwen2moe", {"qwen2moe.expert_count": 1 << 30}),
        ("gpt2", {"gpt2.context_length": 10**8}),
    ],
)
def test_keys_that_ask_for_more_than_the_file_holds_are_refused_before_it_is_allocated(tmp_path, family, keys):
    refusal_of(write(tmp_path / "m.gguf", family, model(family), keys=keys))
    assert not [folder for folder in (tmp_path / "cache" / "models").iterdir() if folder.is_dir()]


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path):
    weight = torch.ones(64)
    weight[3] = math.nan
    tensors = {"blk.1.ffn_norm.weight": weight}
    said = refusal_of(write(tmp_path / "m.gguf", "llama", model("llama"), tensors=tensors))
    assert "layers.1.post_attention_layernorm.weight" in said


@pytest.mark.parametrize("name", ["blk.0.attn_output.bias", "blk.1.ffn_up.bias", "blk.0.attn_q.bias"])
def test_a_bias_of_some_layers_is_not_dropped(tmp_path, name):
    size = 96 if "ffn" in name else 64
    refusal_of(write(tmp_path / "m.gguf", "llama", model("llama"), tensors={name: torch.ones(size)}))


def test_a_token_that_would_be_read_as_several_is_refused_by_name(tmp_path):
    tokens = [*TOKENS[:-1], "<｜User｜>"]
    keys = {"tokenizer.ggml.tokens": tokens}
    assert "<｜User｜>" in refusal_of(write(tmp_path / "m.gguf", "llama", model("llama"), keys=keys))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "m.gguf", "llama", model("llama")).read_bytes()


def number(value, width=8):
    return value.to_bytes(width, "little")


def array_of(name, kind, length):
    """Changes the length of an array of the tokenizer."""
    start = b"tokenizer.ggml." + name.encode() + number(9, 4) + number(kind, 4)
    return lambda content: content.replace(start + number(len(TOKENS)), start + number(length))


def norm_of(size=64, kind=0):
    """Changes the size or the type of a norm's tensor."""
    start = b"blk.0.attn_norm.weight" + number(1, 4)
    return lambda content: content.replace(start + number(64) + number(0, 4), start + number(size) + number(kind, 4))


BROKEN = {
    "nothing": lambda content: b"",
    "other bytes": lambda content: b"ggml" + content[4:],
    "an old version": lambda content: content[:4] + number(1, 4) + content[8:],
    "big-endian": lambda content: content[:4] + number(3 << 24, 4) + content[8:],
    "a header that ends": lambda content: content[:3000],
    "a file that ends": lambda content: content[:-100],
    "too many tensors": lambda content: content[:8] + number(10**15) + content[16:],
    "too many keys": lambda content: content[:16] + number(1 << 63) + content[24:],
    "a long name": lambda content: content[:24] + number(1 << 62) + content[32:],
    "a long array": array_of("token_type", 5, 1 << 60),
    "a long array of text": array_of("tokens", 8, 1 << 60),
    "a type of key": lambda content: content.replace(
        b"llama.block_count" + number(4, 4), b"llama.block_count" + number(44, 4)
    ),
    "a tensor outside": norm_of(size=1 << 62),
    "a type of tensor": norm_of(kind=77),
    "a tensor twice": lambda content: content.replace(b"blk.1.attn_norm.weight", b"blk.0.attn_norm.weight"),
    "a key twice": lambda content: content.replace(b"llama.block_count", b"llama.context_length"[:17]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path, content, what):
    broken = BROKEN[what](content)
    assert broken != content
    (tmp_path / "m.gguf").write_bytes(broken)
    assert str(tmp_path / "m.gguf") in refusal_of(tmp_path / "m.gguf")


def test_each_part_of_a_header_that_ends_is_one_sentence(tmp_path, content):
    for end in range(0, 9000, 371):
        (tmp_path / "m.gguf").write_bytes(content[:end])
        refusal_of(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["m.GGUF", "My.Model.Q4_K.Gguf"])
def test_the_ending_may_be_in_capitals(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    assert load(ModelConfig("m", path=str(tmp_path / name), chat_template=False, device="cpu")).layers == 2


def test_a_folder_of_files_is_not_a_model(tmp_path, content):
    (tmp_path / "m.GGUF").write_bytes(content)
    with refused("model.path"):
        load(ModelConfig("m", path=str(tmp_path)))


def test_a_shard_gets_the_advice_for_shards(tmp_path):
    path = write(tmp_path / "m-00001-of-00003.gguf", "llama", model("llama"), keys={"split.count": 3, "split.no": 0})
    with refused("split.count", value=3):
        load(ModelConfig("m", path=str(path)))


def test_a_copy_of_before_is_not_used_for_a_file_that_is_read_otherwise_now(tmp_path, content):
    """The copy of a completely read file is stored under the file's sha256."""
    (tmp_path / "plain.gguf").write_bytes(content)
    folder, identity = checkpoints.from_gguf([tmp_path / "plain.gguf"], None)
    assert identity == checkpoints.sha256([tmp_path / "plain.gguf"])
    assert folder.name == f"plain-{identity[:16]}"
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write(tmp_path / "scaled.gguf", "llama", model("llama"), keys=keys)
    digest = checkpoints.sha256([path])
    old = folder.with_name(f"scaled-{digest[:16]}")
    folder.rename(old)  # as a version that did not read these keys left it
    scaled, other = checkpoints.from_gguf([path], digest)
    assert scaled != old
    assert other != digest
    assert AutoConfig.from_pretrained(scaled).rope_parameters["factor"] == 4.0
    path = write(tmp_path / "extra.gguf", "llama", model("llama"), tensors={"blk.0.attn_sinks.weight": ODD})
    old.rename(old.with_name(f"extra-{checkpoints.sha256([path])[:16]}"))
    assert "blk.0.attn_sinks.weight" in refusal_of(path)
