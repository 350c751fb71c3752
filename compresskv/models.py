"""Load a model and its tokenizer: from the hub, from a directory, or from a GGUF file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from compresskv import checkpoints, hardware, loaded_weights, model_files
from compresskv.chat import chat_ids, chat_prompt
from compresskv.checking import FrozenMapping, frozen
from compresskv.engine.model_shape import evicting_layers, head_dim, kv_heads
from compresskv.engine.rotary import depends_on_length
from compresskv.errors import UserError, located
from compresskv.folders import package_files
from compresskv.generation_defaults import (
    GENERATION_CONFIG,
    checked_settings,
    defaults_of,
    plain,
    refuse_broken,
    refuse_unserved_settings,
)
from compresskv.inputs import expanded
from compresskv.model_config import ModelConfig
from compresskv.probe import backend_fault, learned_positions, refuse_unserved


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model, ready to be `attached`, with the facts that the harness needs about it.

    `stop_ids`: the end tokens of the generation config and of the tokenizer. `generation_defaults`: further settings of
    the generation config for greedy decoding. `positions`: number of learned positions; None: no limit. `length_rope`:
    whether its RoPE depends on the length of the text. `notes`: sentences for the user about this checkpoint.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    chat_template: bool
    dtype: str
    backend: str
    fingerprint: str
    stop_ids: frozenset[int]
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    positions: int | None = None
    length_rope: bool = False

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def weights(self) -> dict[str, str]:
        """Fingerprints of the weights in memory, independent of their file (`loaded_weights.fingerprints`)."""
        return loaded_weights.fingerprints(self.model)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about this model that can change a prediction, as JSON data."""
        return {
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "backend": self.backend,
            "chat_template": self.chat_template,
            "chat_template_kwargs": dict(self.chat_template_kwargs),
            "stop_ids": sorted(self.stop_ids),
            "generation_defaults": dict(self.generation_defaults),
            # Earlier versions stored different results for such models.
            **({"rope": "by the length of each text"} if self.length_rope else {}),
        }

    @property
    def layers(self) -> int:
        """Number of layers that evict: the layers with global attention."""
        return len(evicting_layers(self.model.config))

    @property
    def q_heads(self) -> int:
        return self.model.config.get_text_config(decoder=True).num_attention_heads

    @property
    def kv_heads(self) -> int:
        return kv_heads(self.model.config)

    def settings(self, generation_config: Literal["ignored", "honoured"]) -> FrozenMapping:
        """Return the `Stopping.settings` for this value of the protocol's `generation_config`.

        Raises `UserError` if it is honoured and has settings that are not supported.
        """
        if generation_config == "ignored":
            return FrozenMapping()
        refuse_unserved_settings(self.model.generation_config)
        return frozen(self.generation_defaults)

    def chat(self, text: str, answer_prefix: str = "") -> str:
        """Render `text` as one user turn and the opening of the answer, with the model's own template."""
        if not self.chat_template:
            return text + answer_prefix
        return chat_prompt(text, self.tokenizer, self.chat_template_kwargs) + answer_prefix

    def encode(self, prompt: str) -> torch.Tensor:
        """Tokenize a prompt: ids [prompt], int64, on the model's device. With one BOS if the tokenizer uses one.

        Raises `UserError` for a token of the tokenizer that the model does not have.
        """
        ids = chat_ids(prompt, self.tokenizer) if self.chat_template else self.tokenizer(prompt).input_ids
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        if (most := max(ids, default=0)) >= vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(most)
            raise UserError(
                "model",
                "correct the files of its tokenizer",
                value=self.name,
                why=f"its tokenizer gives token {most} ({token}), but the model has only {vocabulary} tokens",
            )
        return torch.tensor(ids, device=self.device)


def load(config: ModelConfig) -> LoadedModel:
    """Load a model as configured, and check that eviction supports it.

    Raises `UserError`, with the fix, if it cannot be loaded or is not supported.
    """
    chosen = hardware.choose(config)
    with _explained(config), _quiet():
        source, fingerprint = _source(config)
        model, tokenizer = _pretrained(config, source, chosen)
        refuse_unserved(model)
        chosen = hardware.for_heads(chosen, config, head_dim(model.config))
        chosen = _checked(model, config, chosen)
        positions, length_rope = learned_positions(model), depends_on_length(model)
        _check_ends(model, tokenizer, Path(source))
        fingerprint = fingerprint or checkpoints.fingerprint(source, config.revision, config.trust_remote_code)
    if config.chat_template and not tokenizer.chat_template:
        raise UserError(
            "model.chat_template",
            "set model.chat_template=false",
            value=True,
            why=f"the tokenizer of {config.name} has no chat template",
        )
    stop_ids = _ids(model.generation_config.eos_token_id) | _ids(tokenizer.eos_token_id)
    defaults = defaults_of(model.generation_config)
    loaded = LoadedModel(
        name=config.name,
        model=model,
        tokenizer=tokenizer,
        window=_window(config, model, positions),
        positions=positions,
        length_rope=length_rope,
        chat_template=config.chat_template,
        chat_template_kwargs=config.chat_template_kwargs,
        dtype=str(chosen.dtype).removeprefix("torch."),
        backend=chosen.backend,
        fingerprint=fingerprint,
        stop_ids=stop_ids,
        generation_defaults=defaults,
        notes=(*chosen.notes, *_notes(model, tokenizer, defaults)),
    )
    model.generation_config.eos_token_id = sorted(stop_ids) or None  # `generate` stops at the same tokens
    return loaded


def fetch(config: ModelConfig) -> Path:
    """Download everything that `load` reads, so that it needs no network, and return the folder. Loads nothing.

    Downloads nothing for a directory, and makes the safetensors copy of a GGUF file. Raises `UserError` with the fix.
    """
    with _explained(config), _quiet():
        source, _ = _source(config)
        if os.path.exists(source):
            return Path(source)
        checkpoints.ask_once(source, config.revision)
        return Path(snapshot_download(source, revision=config.revision, allow_patterns=list(model_files.PATTERNS)))


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, without its weights. Raises `UserError` with the fix if it cannot be loaded."""
    with _explained(config), _quiet():
        options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        return AutoTokenizer.from_pretrained(_source(config)[0], **options)


def _source(config: ModelConfig) -> tuple[str, str | None]:
    """Return the directory or hub id to load from, and the fingerprint of the GGUF file it was made from, if any."""
    if config.path:
        path = expanded(config.path, "model.path")
        gguf = path.suffix.lower() == ".gguf"
        if path.is_file() and gguf:
            folder, digest = checkpoints.from_gguf([path], config.sha256 if not config.package else None)
            return str(folder), digest[:16]
        if path.is_file():
            raise UserError(
                "model.path", "join the parts of the file with `cat`", value=path, why="not a whole .gguf file"
            )
        if path.is_dir() and not (path / "config.json").exists():
            if files := sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".gguf"):
                raise UserError(
                    "model.path", f"give its file, such as {path / files[0]}", value=path, why="it has no config.json"
                )
        elif gguf and not path.is_dir():
            raise UserError("model.path", "check the path", value=path, why="not found")
        return str(path) if path.exists() else config.path, None
    if not config.package:
        raise UserError("model.path", "give a hub id, a local directory or a .gguf file", value=None)
    folder, digest = checkpoints.from_gguf(package_files(config.packaged), config.sha256)
    return str(folder), digest[:16]


def _pretrained(
    config: ModelConfig, source: str, chosen: hardware.Hardware
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    checkpoints.ask_once(source, config.revision)
    model_files.refuse_adapter(source, config.revision)
    local = Path(source).is_dir()
    if local:  # files of a hub id are downloaded with the model
        _check(Path(source), config)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=chosen.dtype,
        use_safetensors=True,
        attn_implementation="sdpa",
        # Weights go straight to their device, so the host does not need memory for all weights.
        device_map={"map": "auto", "cpu": None}.get(chosen.device, chosen.device),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported by `checkpoints.complete`
        **options,
    )
    checkpoints.complete(info, source)
    if not local:
        _check(checkpoints.folder_of(source, config.revision), config)
    return model.eval(), tokenizer


def _checked(model: PreTrainedModel, config: ModelConfig, chosen: hardware.Hardware) -> hardware.Hardware:
    """Return `chosen` if its backend decodes `model` exactly. With backend auto, return sdpa if only sdpa decodes
    exactly.

    Raises `UserError` for a backend that the user asked for. On the CPU, there is no other backend to compare with.
    """
    if model.device.type != "cuda":
        return chosen
    fault = backend_fault(model, chosen.backend)
    if fault and config.backend == "auto" and chosen.backend != "sdpa":
        chosen = replace(chosen, backend="sdpa", notes=(*chosen.notes, f"model.backend=auto is sdpa: {fault}"))
        fault = backend_fault(model, "sdpa")
    if fault:
        fix = "use another version of torch" if chosen.backend == "sdpa" else "set model.backend=sdpa"
        raise UserError("model.backend", fix, value=chosen.backend, why=fault)
    return chosen


def _check(folder: Path, config: ModelConfig) -> None:
    """Raise `UserError` for files that transformers would misread."""
    text = model_files.check(folder, config.trust_remote_code).get_text_config(decoder=True)
    refuse_broken(folder, text.vocab_size)


def _check_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise `UserError` for invalid settings of the generation config, and if the model lacks all end tokens."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    with located(folder / "config.json"):
        checked_settings(plain(model.generation_config), vocabulary)
    if (end := tokenizer.eos_token_id) is not None and end >= vocabulary:
        raise UserError(
            "eos_token",
            "correct the files of the tokenizer",
            value=tokenizer.eos_token,
            why=f"its id is {end}, but the model has only {vocabulary} tokens",
            where=folder / "tokenizer_config.json",
        )
    ends = _ids(model.generation_config.eos_token_id)
    if end is None and ends and min(ends) >= vocabulary:
        raise UserError(
            "eos_token_id",
            "correct it",
            value=sorted(ends),
            why=f"the model has only {vocabulary} tokens, so no answer would end",
            where=f"{folder}: {GENERATION_CONFIG} or config.json",
        )


def _ids(tokens: int | list[int] | None) -> frozenset[int]:
    return frozenset([tokens] if isinstance(tokens, int) else tokens or [])


def _window(config: ModelConfig, model: PreTrainedModel, positions: int | None) -> int:
    """Return the configured window, or the window that the model was trained for.

    Raises `UserError` if it exceeds the learned `positions`.
    """
    if config.window and positions and config.window > positions:
        raise UserError(
            "model.window",
            f"set it to {positions} or less",
            value=config.window,
            why=f"{type(model).__name__} has learned positions for {positions} tokens",
        )
    window = config.window or _trained_window(config, model)
    return min(window, positions or window)


def _trained_window(config: ModelConfig, model: PreTrainedModel) -> int:
    """Return the number of tokens that the model was trained for."""
    text = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(window := getattr(text, name, None), int):
            return window
    raise UserError(
        "model.window",
        "give the number of tokens that the model was trained for",
        value=None,
        why=f"the config.json of {config.name} has no max_position_embeddings",
    )


def _notes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, defaults: Mapping[str, Any]) -> Iterator[str]:
    of_config, of_tokenizer = _ids(model.generation_config.eos_token_id), _ids(tokenizer.eos_token_id)
    if of_tokenizer - of_config:
        ids = sorted(of_config | of_tokenizer)
        names = ", ".join(tokenizer.convert_ids_to_tokens(id) or str(id) for id in ids)  # padding ids have no text
        yield f"the tokenizer and generation_config.json name different end tokens: generation stops at any of {names}"
    layers, evicting = model.config.get_text_config(decoder=True).num_hidden_layers, len(evicting_layers(model.config))
    if evicting < layers:
        yield f"{evicting} of {layers} layers evict; the other layers keep their sliding window, outside the budget"
    if defaults:
        settings = ", ".join(f"{name}={str(value)[:40]}" for name, value in defaults.items())
        yield f"generation_config.json sets {settings}; protocol.generation_config determines whether this applies"


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    """Turn any error of the loading libraries into one sentence with the fix."""
    source = config.path or str(config.package)
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(
            "model.path",
            "delete this folder and download the model again",
            value=Path(source),
            why=f"a weights file is broken ({error})",
        ) from error
    except Exception as error:  # each architecture's code fails differently
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        reason = " ".join(" ".join(lines[: 2 if lines[:1] and lines[0].endswith(":") else 1]).split())[:300]
        fix = _fix(source, reason)
        raise UserError(
            "model.path", fix, value=Path(source), why=f"the model cannot be loaded ({type(error).__name__}: {reason})"
        ) from error


def _fix(source: str, reason: str) -> str:
    """Return what to do about an error of the loading libraries."""
    for said, fix in _FIXES.items():
        if said in reason:
            return fix
    if expanded(source, "model.path").exists():
        return "correct these files, or download the model again"
    return "check the id, set HF_TOKEN if the model is private, and unset HF_HUB_OFFLINE if you are online"


_FIXES = {
    "gated": "ask for access on its hub page and set HF_TOKEN",
    "401": "ask for access on its hub page and set HF_TOKEN",
    "403": "ask for access on its hub page and set HF_TOKEN",
    "trust_remote_code": "set model.trust_remote_code=true if you trust the code that comes with it",
    "does not recognize this architecture": "use a version of transformers that knows it, or another model",
    "Unrecognized configuration class": "choose a decoder-only language model",
    "does not support an attention implementation": "its attention cannot be replaced: choose another architecture",
    "no file named model.safetensors": "save its weights as safetensors: other formats can run code",
    "out of memory": "set model.dtype=bfloat16 or model.device=map, or choose a smaller model",
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
