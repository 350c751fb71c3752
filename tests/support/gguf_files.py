"""Write tiny GGUF files of random models, as llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "1 2"]
TOKENS = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), "hellooo", "<s>", "</s>", "<e>"]
BOS, EOS, EOT = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * BOS + [3, 3, 3],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": BOS,
    "tokenizer.ggml.eos_token_id": EOS,
    "tokenizer.ggml.add_bos_token": False,
}
SPACE = "▁"
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    SPACE,
    *"helo12",
    "he",
    "ll",
    "hell",
    "hello",
]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(place) for place in range(len(PIECES) - 259)],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": True,
}
OF_GEMMA = {
    **SENTENCEPIECE,
    "tokenizer.ggml.tokens": PIECES[:266],
    "tokenizer.ggml.scores": SENTENCEPIECE["tokenizer.ggml.scores"][:266],
    "tokenizer.ggml.token_type": SENTENCEPIECE["tokenizer.ggml.token_type"][:266],
    "tokenizer.ggml.add_space_prefix": False,
}

SIZE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "qwen2moe": (Qwen2MoeConfig, {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3moe": (Qwen3MoeConfig, {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma3": (Gemma3TextConfig, {**GEMMA, "num_hidden_layers": 7}),
    "phi3": (Phi3Config, {}),
    "stablelm": (
        StableLmConfig,
        {"use_qkv_bias": True, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ),
    "starcoder2": (Starcoder2Config, {}),
    "gpt2": (GPT2Config, {}),
}


def model(family: str, **changes: Any) -> PreTrainedModel:
    """Make a random model of a family, in float32; norms and biases are random too."""
    kind, own = FAMILIES[family]
    torch.manual_seed(0)
    config = kind(**{**SIZE, **own, **changes})
    made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 1:
                weight.normal_(0.0 if name.endswith("bias") or "gemma" in family else 1.0, 0.2)
    return made


def keys_of(family: str, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keys that the converter writes for this configuration, except those of the tokenizer."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": hidden,
        "feed_forward_length": 4 * hidden if family == "gpt2" else config.intermediate_size,
        "attention.head_count": heads,
    }
    if family in ("gpt2", "stablelm", "starcoder2"):
        names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
        keys["attention.layer_norm_epsilon"] = next(getattr(config, name) for name in names if hasattr(config, name))
    else:
        keys["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    if family == "gpt2":
        return named(family, keys)
    keys["attention.head_count_kv"] = config.num_key_value_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if family not in ("stablelm",):
        keys["rope.freq_base"] = rope["rope_theta"]
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    if family in ("llama", "phi3", "stablelm"):
        keys["rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if family.startswith("gemma") or family.startswith("qwen3"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if family in ("gemma3", "phi3"):
        keys["attention.sliding_window"] = config.sliding_window or 0
    if family.endswith("moe"):
        keys |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if family == "qwen2moe":
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if family == "stablelm":
        keys["use_parallel_residual"] = config.use_parallel_residual
    return named(family, keys)


def named(family: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {f"{family}.{key}": value for key, value in keys.items()}


def tensors_of(family: str, made: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the model's weights with the names and the row order of GGUF files."""
    config = made.config
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {}
    for name, weight in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            block = name.split(".")[2]
            gate, up = weight.chunk(2, dim=1)
            tensors |= {f"blk.{block}.ffn_gate_exps.weight": gate, f"blk.{block}.ffn_up_exps.weight": up}
            continue
        stem, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        if family == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            weight = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        if family.startswith("gemma") and stem.endswith("norm"):
            weight = weight + 1
        if family == "gpt2" and stem.endswith(("c_attn", "c_proj", "c_fc")) and kind == "weight":
            weight = weight.T
        found = names.get_name(stem)
        assert found, name
        if found.endswith("ffn_gate_inp_shexp"):
            weight = weight.flatten()
        tensors[f"{found}.{kind}"] = weight
    return tensors


def write(
    path: Path,
    family: str,
    made: PreTrainedModel,
    *,
    keys: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> Path:
    """Write `made` to a GGUF file; `keys` and `tensors` are changed or added, names in `without` are left out."""
    own = {"gemma3": OF_GEMMA, "qwen2": {**TOKENIZER, "tokenizer.ggml.pre": "qwen2"}}
    tokenizer = tokenizer or own.get(family, TOKENIZER)
    written = {**keys_of(family, made.config), **tokenizer, **(keys or {})}
    writer = GGUFWriter(path, family)
    for key, value in written.items():
        if key in without:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in {**tensors_of(family, made), **(tensors or {})}.items():
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(torch.as_tensor(tensor).float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
