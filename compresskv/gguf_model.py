"""Translate the keys and tensors of a GGUF file to the configuration and the tokenizer of its model.

transformers reads some keys of a file and ignores the other keys. For every key and tensor, this module applies it,
ignores it if it is known to have no effect, or refuses it by name.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from compresskv.errors import UserError
from compresskv.gguf_file import GgufFile


def _weights(names: str) -> frozenset[str]:
    return frozenset(f"{name}.weight" for name in names.split())


def _biases(names: str) -> frozenset[str]:
    return frozenset(f"{name}.bias" for name in names.split())


_QKV = "attn_q attn_k attn_v"
_MLP = "ffn_gate ffn_up ffn_down"
_BLOCK = _weights(f"{_QKV} {_MLP} attn_output attn_norm ffn_norm")
_OUTSIDE = _weights("token_embd output_norm output")
_QK_NORM = _weights("attn_q_norm attn_k_norm")
_POST_NORM = _weights("post_attention_norm post_ffw_norm")
_EXPERTS = _weights("ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps")
_SHARED_EXPERT = _weights("ffn_gate_inp_shexp ffn_gate_shexp ffn_up_shexp ffn_down_shexp")
_OF_GPT2 = "attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down"
_OF_STARCODER2 = f"{_QKV} attn_norm attn_output ffn_norm ffn_up ffn_down"
_LAYERS_OF_GEMMA3_27B = 62
_EVERY_OF_GEMMA3 = 6
"""Period of the layers without a sliding window in Gemma 3."""

_ROPE_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
OF_THE_CONFIGURATION = frozenset({_ROPE_FREQUENCIES, _LONG, _SHORT})
"""Tensors whose values go into `Meaning.config`. All other tensors are the model's weights."""


@dataclass(frozen=True)
class _Architecture:
    """A supported architecture.

    `block`, `outside`: the names of its tensors in a block and outside of blocks. `epsilon`: the GGUF key of its norms'
    epsilon, and the configuration attribute for it. `keys`: further keys that map to attributes of the configuration.
    `fixed`: attributes that every file of this architecture has. `lost`: attributes that transformers leaves at their
    defaults instead of reading them. `rope`, `partial_rotary`, `sliding`: whether it has a rotary embedding, one that
    may rotate only a part of a head, and sliding windows.
    """

    model_type: str
    block: frozenset[str] = _BLOCK
    outside: frozenset[str] = _OUTSIDE
    epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    rope: bool = True
    partial_rotary: bool = False
    sliding: bool = False


_MOE_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_SOFTCAP = "final_logit_softcapping"  # transformers' Gemma 3 applies no softcap to attention

_ARCHITECTURES = {
    "llama": _Architecture("llama", _BLOCK | _biases(f"{_QKV} attn_output {_MLP}")),
    "qwen2": _Architecture("qwen2", _BLOCK | _biases(_QKV)),
    "qwen3": _Architecture("qwen3", _BLOCK | _QK_NORM, lost=frozenset({"head_dim"})),
    "qwen2moe": _Architecture(
        "qwen2_moe",
        _BLOCK - _weights(_MLP) | _biases(_QKV) | _EXPERTS | _SHARED_EXPERT,
        keys={**_MOE_KEYS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        lost=frozenset({"moe_intermediate_size", "shared_expert_intermediate_size"}),
    ),
    "qwen3moe": _Architecture(
        "qwen3_moe",
        _BLOCK - _weights(_MLP) | _QK_NORM | _EXPERTS,
        keys=_MOE_KEYS,
        fixed={"norm_topk_prob": True},
        lost=frozenset({"moe_intermediate_size"}),
    ),
    "gemma3": _Architecture(
        "gemma3_text",
        _BLOCK | _POST_NORM | _QK_NORM,
        keys={_SOFTCAP: _SOFTCAP},
        lost=frozenset({_SOFTCAP}),
        sliding=True,
    ),
    "phi3": _Architecture(
        "phi3",
        _weights("attn_qkv attn_output attn_norm ffn_norm ffn_up ffn_down"),
        _OUTSIDE | {_LONG, _SHORT},
        lost=frozenset({"sliding_window", "original_max_position_embeddings"}),
        partial_rotary=True,
        sliding=True,
    ),
    "stablelm": _Architecture(
        "stablelm",
        _BLOCK | _biases(f"{_QKV} attn_norm ffn_norm"),
        _OUTSIDE | _biases("output_norm"),
        ("attention.layer_norm_epsilon", "layer_norm_eps"),
        partial_rotary=True,
    ),
    "starcoder2": _Architecture(
        "starcoder2",
        _weights(_OF_STARCODER2) | _biases(_OF_STARCODER2),
        _OUTSIDE | _biases("output_norm"),
        ("attention.layer_norm_epsilon", "norm_epsilon"),
    ),
    "gpt2": _Architecture(
        "gpt2",
        _weights(_OF_GPT2) | _biases(_OF_GPT2),
        _OUTSIDE | _weights("position_embd") | _biases("output_norm"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        lost=frozenset({"n_positions", "n_inner"}),
        rope=False,
    ),
}
"""Supported architectures. Each was compared, logit for logit, with the same model loaded from safetensors."""

_HARMLESS = (
    r"general\.(?!sampling\.penalty).+",  # provenance, and sampling, which does not affect greedy decoding
    r"general\.sampling\.penalty_last_n",
    r"quantize\..+|imatrix\..+|mradermacher\..+",  # how it was quantised
    r"split\.(no|tensors\.count)",  # numbering of a complete file
    r"tokenizer\.chat_template\..+|tokenizer\.chat_templates",  # additional templates; only the default is used
    r"tokenizer\.huggingface\.json",  # the same tokenizer in another format
    r"tokenizer\.ggml\.(fim_.+|prefix|suffix|middle|seperator|mask|cls)_token_id",  # never put into a prompt
    r"llama\.tensor_data_layout",  # informational: the order of rows that every file of llama has
    r"[^.]+\.rope\.scaling\.finetuned",  # informational
)
"""Keys that cannot change what the model predicts."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "general.type": ("model",),
    "general.sampling.penalty_repeat": (1.0,),
    "general.sampling.penalty_freq": (0.0,),
    "general.sampling.penalty_present": (0.0,),
    "split.count": (0, 1),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.token_type_count": (0, 1),
}
"""Values at which a key, without its architecture prefix, has no effect. A key that nothing reads must have one of
these values."""

_PLAIN = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"})
_SINGLE_DIGITS = frozenset({"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"})
_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken"}
)
"""Values of `tokenizer.ggml.pre` that keep words which are tokens whole, and that begin a text with BOS."""

_SENTENCEPIECE = frozenset({"llama", "gemma3", "phi3", "stablelm"})
_OWN_SPLIT = {
    **dict.fromkeys(("qwen2", "qwen2moe", "qwen3", "qwen3moe"), "qwen2"),
    **dict.fromkeys(("gpt2", "starcoder2"), "gpt-2"),
}
"""How transformers splits text for an architecture once the tokenizer is saved and reloaded. Ignores the file."""

_PUBLISHED_AS_PLAIN = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""sha256 of the default model's file. The file names `smollm`, but published results used GPT-2's way to split text."""


@dataclass(frozen=True)
class TokenizerMeaning:
    """How text is split into tokens.

    `split`: a value of `tokenizer.ggml.pre`, or None for SentencePiece. `space`: whether SentencePiece adds a space
    before a text. `whole_words`: whether a word that is a token is used directly instead of being built from merges.
    """

    split: str | None
    whole_words: bool
    space: bool
    bos: bool
    eos: bool
    chat_template: str | None

    @property
    def single_digits(self) -> bool:
        return self.split in _SINGLE_DIGITS


@dataclass(frozen=True)
class Meaning:
    """The model that a file describes.

    `config`: attributes of the configuration. `stop_ids`: the tokens that end an answer. `lost`: the attributes that
    transformers does not read from the file. A model made without them is different.
    """

    model_type: str
    config: dict[str, Any]
    tokenizer: TokenizerMeaning
    bos: int | None
    pad: int | None
    stop_ids: tuple[int, ...]
    lost: dict[str, Any]

    def identity(self, digest: str) -> str:
        """Return an id of the model loaded from the file with this sha256: the digest itself if nothing is lost."""
        return hashlib.sha256(json.dumps([digest, self.lost]).encode()).hexdigest() if self.lost else digest

    def configuration(self) -> PreTrainedConfig:
        """Build the model's configuration from the file alone."""
        ids = {"bos_token_id": self.bos, "eos_token_id": self.stop_ids[0], "pad_token_id": self.pad}
        return AutoConfig.for_model(self.model_type, **json.loads(json.dumps(self.config)), **ids)


def meaning(file: GgufFile, digest: str) -> Meaning:
    """Interpret this file. Raises `UserError` that names the first key or tensor that is not supported exactly."""
    return _Reader(file, digest).meaning()


class _Reader:
    """Reads the keys of a file, and records which keys were read."""

    def __init__(self, file: GgufFile, digest: str):
        self.file = file
        self.plain = digest == _PUBLISHED_AS_PLAIN
        self.name = str(file.keys.get("general.architecture"))
        self.seen: set[str] = set()

    def meaning(self) -> Meaning:
        self.refuse_shards()
        if self.name not in _ARCHITECTURES:
            self.refuse("general.architecture", f"the supported architectures are {', '.join(sorted(_ARCHITECTURES))}")
        self.architecture = _ARCHITECTURES[self.name]
        self.refuse_tensors()
        config = self.config()
        tokenizer, read = self.tokenizer()
        eos, pad = self.token("eos", config["vocab_size"]), self.token("padding", config["vocab_size"])
        if eos is None:
            self.refuse("tokenizer.ggml.eos_token_id", "without it, the end of an answer is unknown")
        bos = self.token("bos", config["vocab_size"])
        if tokenizer.bos and bos is None:
            self.refuse("tokenizer.ggml.bos_token_id", "prompts of this model begin with it")
        self.token("unknown", config["vocab_size"])
        others = (self.token(name, config["vocab_size"]) for name in ("eot", "eom"))
        stop_ids = (eos, *sorted({token for token in others if token not in (None, eos)}))
        self.refuse_unread_keys()
        before = self.before(config)
        lost = {name: value for name, value in config.items() if value != before[name]}
        if self.name == "llama" and self.file.keys.get("general.name") == "mistral":
            lost["model_type"] = "llama"  # transformers reads it as a Mistral with a sliding window
        if tokenizer != read:
            changed = vars(tokenizer).items() - vars(read).items()
            lost["tokenizer"] = dict(sorted(changed))
        if stop_ids[1:]:
            lost["stop_ids"] = stop_ids
        return Meaning(self.architecture.model_type, config, tokenizer, bos, pad, stop_ids, lost)

    # The model.

    def config(self) -> dict[str, Any]:
        """Return the configuration attributes that follow from keys and tensors."""
        name, tensors = self.name, self.file.tensors
        hidden, heads = self.integer("embedding_length"), self.integer("attention.head_count")
        head_dim = self.head_dim(hidden, heads)
        context = self.integer("context_length", most=100_000_000)
        layers = self.blocks()
        config: dict[str, Any] = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": context,
            "vocab_size": self.vocabulary(),
            "tie_word_embeddings": "output.weight" not in tensors,
            self.architecture.epsilon[1]: self.real(self.architecture.epsilon[0]),
            **self.architecture.fixed,
        }
        inner = self.integer("feed_forward_length")
        if name == "gpt2":
            if self.integer("attention.head_count_kv", heads) != heads:
                self.refuse("gpt2.attention.head_count_kv", "its heads share no keys")
            if inner != 4 * hidden:
                config["n_inner"] = inner
            for ours, theirs in (
                ("hidden_size", "n_embd"),
                ("num_hidden_layers", "n_layer"),
                ("num_attention_heads", "n_head"),
                ("max_position_embeddings", "n_positions"),
            ):
                config[theirs] = config.pop(ours)
        else:
            config |= {"intermediate_size": inner, "num_key_value_heads": self.integer("attention.head_count_kv")}
            if heads % config["num_key_value_heads"]:
                self.refuse(f"{name}.attention.head_count_kv", f"it does not divide the {heads} heads")
        for key, attribute in self.architecture.keys.items():
            if self.has(key) and key != _SOFTCAP:
                config[attribute] = self.integer(key)
            elif self.has(key):
                config[attribute] = self.real(key, least=0) or None
        if name == "llama":
            attention, mlp = self.in_blocks(r"attn_\w+\.bias"), self.in_blocks(r"ffn_\w+\.bias")
            config |= {"attention_bias": attention, "mlp_bias": mlp}
        if name == "stablelm":
            parallel = not self.in_blocks(r"ffn_norm\.\w+")
            config |= {"use_qkv_bias": self.in_blocks(r"attn_[qkv]\.bias"), "use_parallel_residual": parallel}
            if self.flag("use_parallel_residual", parallel) != parallel:
                self.refuse("stablelm.use_parallel_residual", "the tensors contradict it")
        if name.startswith("gemma") or name in ("llama", "qwen3", "qwen3moe") or head_dim * heads != hidden:
            config["head_dim"] = head_dim
        if name in ("phi3", "stablelm", "gpt2", "starcoder2") and "head_dim" in config:
            self.refuse(f"{name}.attention.key_length", f"heads of {name} have {hidden} / {heads} dimensions")
        config |= self.attention_scale(layers, hidden, heads, head_dim)
        config |= self.windows(layers)
        if self.architecture.rope:
            config |= self.rope(head_dim, context)
        return config

    def blocks(self) -> int:
        """Return the number of layers, which must match the file's tensors."""
        count = self.integer("block_count")
        found = {int(name.split(".")[1]) for name in self.file.tensors if re.match(r"blk\.\d+\.", name)}
        if found != set(range(len(found))) or count != len(found):
            self.refuse(f"{self.name}.block_count", f"the file has the tensors of {len(found)} blocks")
        return count

    def vocabulary(self) -> int:
        tokens = self.array("tokenizer.ggml.tokens")
        size = self.integer("vocab_size", len(tokens))
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or size < len(tokens) or embedding.shape[-1] != size:
            rows = embedding.shape[-1] if embedding else 0
            reason = f"the file has {len(tokens)} tokens and {rows} rows of token_embd.weight"
            self.refuse(f"{self.name}.vocab_size", reason)
        return size

    def head_dim(self, hidden: int, heads: int) -> int:
        if not self.has("attention.key_length") and hidden % heads:
            self.refuse(f"{self.name}.attention.head_count", f"it does not divide embedding_length={hidden}")
        size = self.integer("attention.key_length", hidden // heads)
        if self.integer("attention.value_length", size) != size:
            self.refuse(f"{self.name}.attention.value_length", f"keys have {size} dimensions")
        return size

    def attention_scale(self, layers: int, hidden: int, heads: int, head_dim: int) -> dict[str, Any]:
        """Return Gemma's attention scale. Its largest model does not divide by the root of the head dimension."""
        scale = self.real("attention.scale", 0.0, least=0)
        usual = hidden // heads if self.name == "gemma3" and layers == _LAYERS_OF_GEMMA3_27B else head_dim
        divisor = scale**-2 if scale else usual
        if not _close(divisor, round(divisor)) or (round(divisor) != usual and self.name != "gemma3"):
            self.refuse(f"{self.name}.attention.scale", f"the model's own value is {usual**-0.5:.6g}")
        return {"query_pre_attn_scalar": round(divisor)} if self.name == "gemma3" else {}

    def windows(self, layers: int) -> dict[str, Any]:
        """Return the sliding window, and the layers that have a sliding window."""
        if not self.architecture.sliding:
            return {}
        window = self.integer("attention.sliding_window", 0, least=0)
        if self.name == "phi3":
            return {"sliding_window": window or None}
        pattern = self.key("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            sliding = [value is True or value == 1 for value in pattern]
            if len(sliding) != layers or not all(value in (0, 1) for value in pattern):
                self.refuse(
                    f"{self.name}.attention.sliding_window_pattern", f"one value for each of {layers} layers is needed"
                )
        else:
            every = self.integer("attention.sliding_window_pattern", _EVERY_OF_GEMMA3, least=0)
            sliding = [every == 0 or layer % every < every - 1 for layer in range(layers)]
        kinds = ["sliding_attention" if slides and window else "full_attention" for slides in sliding]
        return {"layer_types": kinds} | ({"sliding_window": window} if window else {})

    def rope(self, head_dim: int, context: int) -> dict[str, Any]:
        """Return the rotary embedding as transformers' `rope_parameters`."""
        rotated = self.integer("rope.dimension_count", head_dim)
        rope = {"rope_theta": self.real("rope.freq_base", 10000.0)}
        if self.architecture.partial_rotary:
            rope["partial_rotary_factor"] = rotated / head_dim
        if int(head_dim * rope.get("partial_rotary_factor", 1.0)) != rotated or rotated % 2:
            self.refuse(f"{self.name}.rope.dimension_count", f"all {head_dim} dimensions of a head are rotated")
        config: dict[str, Any] = {}
        scaling = self.scaling(rope["rope_theta"], rotated, context)
        if self.name == "gemma3":
            if scaling["rope_type"] not in ("default", "linear"):
                self.refuse("gemma3.rope.scaling.type", "Gemma 3 is supported with linear scaling only")
            local = self.real("rope.freq_base_swa", 10000.0)
            both = {
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
                "full_attention": {**rope, **scaling},
            }
            return {"rope_parameters": both}
        if scaling["rope_type"] == "longrope" and self.name == "phi3":
            config["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
        return config | {"rope_parameters": {**rope, **scaling}}

    def scaling(self, theta: float, rotated: int, context: int) -> dict[str, Any]:
        """Return how the rotary embedding is scaled."""
        key = f"{self.name}.rope.scaling.type"
        factor = self.real("rope.scaling.factor", self.real("rope.scale_linear", 0.0, least=0), least=0) or 1.0
        kind = self.text("rope.scaling.type", "linear")
        original = self.integer("rope.scaling.original_context_length", context)
        attention = self.real("rope.scaling.attn_factor", 1.0)
        if _ROPE_FREQUENCIES in self.file.tensors:
            if kind not in ("none", "linear") or factor != 1 or attention != 1:
                self.refuse(key, f"{_ROPE_FREQUENCIES} already scales the same frequencies")
            return self.given_frequencies(theta, rotated, original, context)
        if _LONG in self.file.tensors or _SHORT in self.file.tensors or kind == "longrope":
            if kind not in ("none", "linear", "longrope") or factor != 1:
                self.refuse(key, f"{_LONG} already scales the same frequencies")
            return {
                "rope_type": "longrope",
                "long_factor": self.factors(_LONG, rotated),
                "short_factor": self.factors(_SHORT, rotated),
                "factor": context / original,
                "attention_factor": attention,
                "original_max_position_embeddings": original,
            }
        if attention != 1:
            self.refuse(f"{self.name}.rope.scaling.attn_factor", "only scaling of the type longrope has this key")
        if kind in ("none", "linear"):
            stretched = kind == "linear" and factor != 1
            return {"rope_type": "linear", "factor": factor} if stretched else {"rope_type": "default"}
        if kind != "yarn":
            self.refuse(key, "choose none, linear, yarn or longrope")
        if self.real("rope.scaling.yarn_ext_factor", 1.0) != 1:
            self.refuse(f"{self.name}.rope.scaling.yarn_ext_factor", "only 1 is supported")
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": self.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": self.real("rope.scaling.yarn_beta_slow", 1.0),
        }

    def given_frequencies(self, theta: float, rotated: int, original: int, context: int) -> dict[str, Any]:
        """Return the scaling from the file's frequency divisors: Llama 3.1's if the file has them."""
        given = self.factors(_ROPE_FREQUENCIES, rotated)
        if all(factor == 1 for factor in given):
            return {"rope_type": "default"}
        for length in (original, 8192):
            llama3 = _llama3_factors(theta, rotated, max(given), length)
            if all(map(_close, given, llama3)):
                return {
                    "rope_type": "llama3",
                    "factor": max(given),
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": length,
                }
        same = {"long_factor": given, "short_factor": given}
        return {
            "rope_type": "longrope", **same, "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip

    def factors(self, tensor: str, rotated: int) -> list[float]:
        if tensor not in self.file.tensors:
            self.refuse(tensor, "its scaling of the type longrope needs this tensor")
        found = self.file.values(tensor)
        if len(found) != rotated // 2 or not all(math.isfinite(factor) and factor > 0 for factor in found):
            self.refuse(tensor, f"{rotated // 2} positive numbers are needed")
        return found

    # The tokenizer.

    def tokenizer(self) -> tuple[TokenizerMeaning, TokenizerMeaning]:
        """Return the tokenizer that the file describes, and the tokenizer that transformers makes from the file."""
        kind = self.text("tokenizer.ggml.model", "")
        split = self.text("tokenizer.ggml.pre", "")
        tokens, key = self.array("tokenizer.ggml.tokens"), "tokenizer.ggml.token_type"
        if len(self.array(key)) != len(tokens):
            self.refuse(key, "one value per token is needed")
        if self.has("tokenizer.ggml.scores") and len(self.array("tokenizer.ggml.scores")) != len(tokens):
            self.refuse("tokenizer.ggml.scores", "one value per token is needed")
        template = self.key("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            self.refuse("tokenizer.chat_template", "it must be text")
        eos = self.flag("tokenizer.ggml.add_eos_token", False)
        bos = self.key("tokenizer.ggml.add_bos_token")
        if kind == "llama" and self.name in _SENTENCEPIECE:
            return self.sentencepiece(split, self.flag("tokenizer.ggml.add_bos_token", True), eos, template)
        if kind != "gpt2" or self.name == "gemma3":
            served = "llama" if self.name == "gemma3" else "gpt2 and llama" if self.name in _SENTENCEPIECE else "gpt2"
            self.refuse("tokenizer.ggml.model", f"with {self.name} only {served} is supported")
        if self.plain:
            split = "gpt-2"
        if split not in _PLAIN | _SINGLE_DIGITS and split not in GGUF_PRE_TOKENIZER_SPLITS:
            self.refuse("tokenizer.ggml.pre", "this way to split text into words is not supported")
        if self.flag("tokenizer.ggml.add_space_prefix", False):
            self.refuse("tokenizer.ggml.add_space_prefix", "only SentencePiece tokenizers add a space")
        self.array("tokenizer.ggml.merges")
        added = self.flag("tokenizer.ggml.add_bos_token", split in _WHOLE_WORDS)
        said = TokenizerMeaning(split, split in _WHOLE_WORDS, False, added, eos, template)
        plain = _OWN_SPLIT.get(self.name, "gpt-2" if split in _SINGLE_DIGITS else split)
        if GGUF_PRE_TOKENIZER_SPLITS.get(plain, plain) == GGUF_PRE_TOKENIZER_SPLITS.get(split, split):
            plain = split
        if plain in _PLAIN and split in _PLAIN:
            plain = split
        return said, TokenizerMeaning(plain, False, False, bool(bos), eos, template)

    def sentencepiece(
        self, split: str, bos: bool, eos: bool, template: str | None
    ) -> tuple[TokenizerMeaning, TokenizerMeaning]:
        if split not in ("", "default"):
            self.refuse("tokenizer.ggml.pre", "a SentencePiece tokenizer does not split text")
        if not self.has("tokenizer.ggml.merges"):
            self.array("tokenizer.ggml.scores")
        else:
            self.array("tokenizer.ggml.merges")
        space = self.flag("tokenizer.ggml.add_space_prefix", True)
        usual = self.name != "gemma3"
        if space != usual and (self.name == "phi3" or not usual):
            self.refuse("tokenizer.ggml.add_space_prefix", f"transformers reads text of {self.name} with {usual}")
        said = TokenizerMeaning(None, False, space, bos, eos, template)
        return said, TokenizerMeaning(None, False, usual, bos, eos, template)

    def token(self, name: str, vocabulary: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if not self.has(key):
            return None
        token = self.integer(key, least=0)
        if token >= vocabulary:
            self.refuse(key, f"the file has only {vocabulary} tokens")
        return token

    # Refusals.

    def refuse(self, key: str, reason: str) -> NoReturn:
        value = self.file.keys.get(key)
        raise UserError(
            key,
            "use the model's safetensors, or convert the model again",
            value=... if value is None else value,
            why=f"not supported ({reason})",
            where=self.file.parts[0],
        )

    def refuse_shards(self) -> None:
        count = self.file.keys.get("split.count", 1)
        if count not in _NEUTRAL["split.count"]:
            raise UserError(
                "split.count",
                "put the shards together with `llama-gguf-split --merge <first shard> <whole file>`, and give the "
                "whole file",
                value=count,
                why="one of the shards of a model",
                where=self.file.parts[0],
            )

    def refuse_tensors(self) -> None:
        rope = {_ROPE_FREQUENCIES} if self.architecture.rope else set()
        for name in self.file.tensors:
            block = re.match(r"blk\.\d+\.(.*)", name)
            if not (block[1] in self.architecture.block if block else name in self.architecture.outside | rope):
                self.refuse(name, f"{self.name} has no such tensor in transformers")

    def refuse_unread_keys(self) -> None:
        for key, value in self.file.keys.items():
            if key in self.seen or key == "general.architecture":
                continue
            neutral = _NEUTRAL.get(key.removeprefix(f"{self.name}."))
            if neutral is not None and not (isinstance(value, int | float | str) and value in neutral):
                self.refuse(key, f"only {', '.join(map(str, neutral))} has no effect")
            if neutral is None and not any(re.fullmatch(pattern, key) for pattern in _HARMLESS):
                self.refuse(key, "unknown key")

    # How transformers reads the file.

    def before(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that these attributes have when transformers reads the file."""
        size = {name: value for name, value in config.items() if name in ("hidden_size", "num_attention_heads")}
        defaults = AutoConfig.for_model(self.architecture.model_type, **size)
        read = dict(config)
        never = {"attention_bias", "mlp_bias", "query_pre_attn_scalar", "head_dim"} | self.architecture.lost
        for name in never & set(config):
            read[name] = getattr(defaults, name, None)
        head_dim = {
            "llama": "rope.dimension_count",
            "gemma3": "attention.key_length",
            "qwen3moe": "attention.key_length",
        }
        if self.name in head_dim and self.has(head_dim[self.name]):
            read["head_dim"] = self.integer(head_dim[self.name])
        if "layer_types" in config:
            every = _EVERY_OF_GEMMA3
            slides = [layer % every < every - 1 for layer in range(config["num_hidden_layers"])]
            read["layer_types"] = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
        if "rope_parameters" in config:
            rope = read["rope_parameters"] = dict(defaults.rope_parameters)
            if self.has("rope.freq_base") and self.name not in ("stablelm", "starcoder2"):
                base = {"rope_theta": self.real("rope.freq_base")}
                rope |= {"full_attention": {**rope["full_attention"], **base}} if self.name == "gemma3" else base
        return read

    # Single keys.

    def full(self, key: str) -> str:
        return key if key.startswith("tokenizer.") else f"{self.name}.{key}"

    def has(self, key: str) -> bool:
        return self.full(key) in self.file.keys

    def key(self, key: str) -> Any:
        """Return the value of this key, or None, and mark the key as read."""
        self.seen.add(self.full(key))
        return self.file.keys.get(self.full(key))

    def in_blocks(self, pattern: str) -> bool:
        """Return whether one of the blocks has a tensor of this name."""
        return any(re.fullmatch(rf"blk\.\d+\.{pattern}", tensor) for tensor in self.file.tensors)

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = 1 << 40) -> int:
        value = self.key(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            self.refuse(self.full(key), f"a whole number of at least {least} is needed")
        return value

    def real(self, key: str, default: float | None = None, least: float | None = None) -> float:
        """Return a finite number that is at least `least` or, without `least`, above zero."""
        value = self.key(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(self.full(key), "a number is needed")
        if value <= 0 if least is None else value < least:
            self.refuse(self.full(key), "a positive number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.key(key)
        value = default if value is None else value
        if type(value) is not bool:
            self.refuse(self.full(key), "true or false is needed")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.key(key)
        value = default if value is None else value
        if not isinstance(value, str):
            self.refuse(self.full(key), "text is needed")
        return value

    def array(self, key: str) -> list[Any]:
        value = self.key(key)
        if not isinstance(value, list) or not value:
            self.refuse(self.full(key), "an array is needed")
        return value


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)


def _llama3_factors(theta: float, rotated: int, factor: float, original: int) -> list[float]:
    """Return Llama 3.1's frequency divisors, which apply from wavelengths of a quarter of the original length on."""
    found = []
    for position in range(0, rotated, 2):
        turns = original / (2 * math.pi * theta ** (position / rotated))
        share = min(max((turns - 1) / (4 - 1), 0.0), 1.0)
        found.append(1 / ((1 - share) / factor + share))
    return found
