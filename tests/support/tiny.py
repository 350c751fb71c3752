"""Tiny random models of the supported families."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZE = {
    "vocab_size": 96,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}

GEMMA3 = {"head_dim": 16, "sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"] * 2}
"""Settings with sliding windows that are longer than short prompts."""

FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=None)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=24)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE)),
    "qwen2-hybrid": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=24, max_window_layers=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE)),
}

OTHERS = {"gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, **GEMMA3))}
"""Families that only some tests run."""


@cache
def model(family: str) -> PreTrainedModel:
    """Return a random model in float32, the same for every test."""
    torch.manual_seed(0)
    made = (FAMILIES | OTHERS)[family]().eval()
    made.set_attn_implementation("sdpa")
    return made


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids [length]."""
    return torch.randint(0, SIZE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


def save(folder: Path, made: PreTrainedModel | None = None) -> Path:
    """Save a tiny model (default: the Llama) as a checkpoint folder, with a tokenizer of single characters."""
    (made or model("llama")).save_pretrained(folder)
    characters = {chr(place): place - 29 for place in range(32, 125)}
    bpe = models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, **characters}, merges=[], unk_token="<unk>")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = "{{ messages[0]['content'] }}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), **tokens, chat_template=template)
    tokenizer.save_pretrained(folder)
    return folder
