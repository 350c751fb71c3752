"""The files of a model folder: which files transformers reads, and which parts it would ignore.

If transformers would silently ignore a part of a folder (an adapter, scales of quantised weights, a second set of
weights), the folder is refused.
"""

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers import AutoHfQuantizer
from transformers.utils.peft_utils import find_adapter_config_file

from compresskv.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")

_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files written by torch's distributed checkpointing, which transformers prefers over all other files."""

_READ = (".json", ".safetensors", ".jinja", ".model", ".py", ".tiktoken")
_VOCABULARIES = ("vocab.txt", "vocab.bpe", "dict.txt", "bpe.codes", "prophetnet.tokenizer")
"""Vocabulary files, read if the folder has no tokenizer.json."""

PATTERNS = (*(f"*{ending}" for ending in _READ), "*.txt", "vocab.bpe", "bpe.codes")
"""Patterns of the files to download from the hub. They cover all `names`."""

_TEMPLATES = "additional_chat_templates"

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
)
_MOST = {"num_hidden_layers": 10_000, "max_position_embeddings": 100_000_000}
_LARGER = 4
"""Size limit: a model that needs more than this many times the numbers in its files is refused before it is built.

A smaller model is built, and then refused by the names of its missing tensors.
"""

_OTHER_HEADS = re.compile(r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$")

_FLOATING = {"F64", "F32", "F16", "BF16"}


def names(folder: Path, code: bool = False) -> list[str]:
    """Return the files that a model or a tokenizer is read from, relative to `folder`, sorted.

    These are the files at the top level with known endings, the files that `weights` lists, and further chat templates.
    `code`: whether code that comes with the model may run. Such code may read or import anything, so all Python and
    text files are then included. Raises `UserError` for ambiguous weights.
    """
    found = [path.name for path in folder.iterdir() if path.suffix in _READ or path.name == "merges.txt"]
    if not (folder / "tokenizer.json").is_file():
        found += [name for name in _VOCABULARIES if (folder / name).is_file()]
    if (folder / _TEMPLATES).is_dir():
        found += [f"{_TEMPLATES}/{path.name}" for path in (folder / _TEMPLATES).glob("*.jinja")]
    if code:
        for ending in ("*.py", "*.txt"):
            found += [path.relative_to(folder).as_posix() for path in folder.rglob(ending)]
    return sorted(name for name in {*found, *weights(folder)} if (folder / name).is_file())


def code_elsewhere(folder: Path) -> list[tuple[str, str]]:
    """Return the hub ids or folders, and the files in them, that `auto_map` names as `<id>--<module>.<class>`."""
    found = set()
    for name in ("config.json", "tokenizer_config.json"):
        auto_map = _json(folder / name).get("auto_map")
        for classes in auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]:
            for reference in classes if isinstance(classes, list) else [classes]:
                if isinstance(reference, str) and "--" in reference:
                    repository, _, rest = reference.partition("--")
                    found.add((repository, f"{rest.partition('.')[0]}.py"))
    return sorted(found)


def weights(folder: Path) -> list[str]:
    """Return the safetensors files that transformers loads from `folder`, relative to it; empty if the folder has no
    such file.

    Raises `UserError` for two sets of weights, and for an index that is malformed, incomplete or leaves `folder`.
    """
    sets: dict[str, list[str]] = {}
    explicit = _json(folder / "config.json").get("transformers_weights")
    if parts := sorted(path.name for path in folder.iterdir() if _DISTRIBUTED.fullmatch(path.name)):
        sets[parts[0]] = parts
    if explicit is not None:
        _refuse_outside(folder, "config.json", "transformers_weights", explicit)
        sets[explicit] = _of_index(folder, explicit) if explicit.endswith(".index.json") else [explicit]
    else:
        if (folder / SINGLE).is_file():
            sets[SINGLE] = [SINGLE]
        if (folder / INDEX).is_file():
            sets[INDEX] = _of_index(folder, INDEX)
    if len(set(map(tuple, sets.values()))) > 1:
        raise UserError(
            "model.path",
            "remove all but one set of weights",
            value=folder,
            why=f"it contains more than one set of weights: {' and '.join(sets)}",
        )
    return next(iter(sets.values()), [])


def _of_index(folder: Path, index: str) -> list[str]:
    try:
        content = json.loads((folder / index).read_text(encoding="utf-8"))
        files = [*content["weight_map"].values()]
        content["metadata"].keys()  # transformers needs this mapping, with any content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            None, "copy the model again", value=folder / index, why=f"not an index of weights ({reason})"
        ) from error
    if not files:
        raise UserError("weight_map", "copy the model again", why="it lists no files", where=folder / index)
    for name in files:
        _refuse_outside(folder, index, "weight_map", name)
    found = sorted(set(files))
    if absent := [name for name in found if not (folder / name).is_file()]:
        raise UserError("weight_map", "copy the model again", value=absent[0], why="not found", where=folder / index)
    return found


def _refuse_outside(folder: Path, file: str, field: str, name: Any) -> None:
    """Raise `UserError` unless `name` is a safetensors file or index at or below `folder`."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise UserError(
            field, "save the weights as safetensors", value=name, why="not a safetensors file", where=folder / file
        )
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(
            field, "put the file into that folder", value=name, why="outside the model's folder", where=folder / file
        )


def _json(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a JSON file; empty if the file does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers will report the error
    return content if isinstance(content, Mapping) else {}


def check(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration in `folder`, after checking that the files match its config.json. Allocates no weights.

    Raises `UserError`, naming file and field, for impossible sizes, a model of another kind, a quantisation or scales
    that would be left out, a duplicate tensor, or a model far larger than its weights.
    """
    where = folder / "config.json"
    for path in folder.iterdir():
        if path.suffix in _READ and path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(None, "replace it by a regular file", value=path, why="not a file")
    content = _json(folder / "config.json")
    _refuse_sizes(content, where)
    _refuse_quantisation(content, where)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    text = config.get_text_config(decoder=True)
    _refuse_sizes({name: getattr(text, name, None) for name in _SIZES}, where)  # under the names that each config uses
    ours = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING  # else transformers refuses it, or it has its own code
    if ours:
        _refuse_kind(config, where)
    tensors: dict[str, Tensor] = {}
    for file in weights(folder):
        for tensor in headers(folder / file):
            if tensor.name in tensors:
                raise UserError(tensor.name, "save the model again", why="it is in two files of weights", where=folder)
            tensors[tensor.name] = tensor
    _refuse_unscaled(tensors, folder)
    if ours and tensors and not content.get("quantization_config"):
        _refuse_size(config, tensors, where)
    return config


def refuse_adapter(source: str, revision: str | None) -> None:
    """Raise `UserError` if the folder or hub id is an adapter: transformers may leave it out, or load it."""
    found = find_adapter_config_file(source, revision=revision, local_files_only=constants.HF_HUB_OFFLINE)
    names = [ADAPTERS[0]] if found else [name for name in ADAPTERS if os.path.exists(os.path.join(source, name))]
    for name in names:
        raise UserError(
            "model.path",
            "merge the adapter into its model, and give the folder of the merged model",
            value=Path(source),
            why=f"it contains the adapter file {name}, which transformers may not apply",
        )


@dataclass(frozen=True)
class Tensor:
    """A tensor, as described in the header of a safetensors file. `dtype` as in the header: F32, I8."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def headers(file: Path) -> Iterator[Tensor]:
    """Yield the tensors of a safetensors file without reading their values."""
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            part = opened.get_slice(name)
            yield Tensor(name, tuple(part.get_shape()), str(part.get_dtype()))


def _refuse_sizes(config: Mapping[str, Any], where: Path) -> None:
    """Refuse sizes that are out of range. transformers refuses values that are not integers."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for name in _SIZES:
            if type(value := part.get(name)) is int and value < 1:
                raise UserError(name, "set it to 1 or more", value=value, where=where)
        for name, most in _MOST.items():
            if type(value := part.get(name)) is int and value > most:
                raise UserError(name, f"set it to {most} or less", value=value, where=where)


def _refuse_quantisation(config: Mapping[str, Any], where: Path) -> None:
    for part in (config, config.get("text_config")):
        for name in ("quantization_config", "compression_config"):
            method = part.get(name) if isinstance(part, Mapping) else None
            if method is None:
                continue
            known = name == "quantization_config" and isinstance(method, Mapping)
            with suppress(ValueError):  # no quantisation method given
                if known and AutoHfQuantizer.supports_quant_method(method):
                    continue
            raise UserError(
                name,
                "save the model dequantised",
                value=method,
                why="transformers does not know this quantisation and would ignore it",
                where=where,
            )


def _refuse_kind(config: PreTrainedConfig, where: Path) -> None:
    """Refuse a model saved as another kind: `model_type` selects the class, `architectures` names the saved one."""
    saved = config.architectures if isinstance(config.architectures, (list, tuple)) else []
    loaded = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    for name in saved:
        types = [kind for kind, model in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if model == name]
        if name != loaded and (types or _OTHER_HEADS.search(str(name))) and config.model_type not in types:
            raise UserError(
                "architectures",
                "correct it, or choose a model that was saved as a language model",
                value=saved,
                why=f"model_type={config.model_type} is loaded as {loaded}",
                where=where,
            )


def _refuse_unscaled(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse quantised weights without scales, which would be read as plain numbers."""
    modules = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] not in ("weight", "bias")}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        mask = part == "bias" and len(tensor.shape) > 1  # attention buffers of GPT-2
        if tensor.dtype not in _FLOATING and part in ("weight", "bias") and not mask and module not in modules:
            raise UserError(
                name,
                "save the model in a floating-point dtype",
                value=tensor.dtype,
                why="its scales are missing",
                where=folder,
            )


def _refuse_size(config: PreTrainedConfig, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse a model of more than `_LARGER` times its weights, before memory is allocated for it."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if layers > len(tensors):
        raise UserError(
            "num_hidden_layers",
            "correct it, or download the model again",
            value=layers,
            why=f"the weights have only {len(tensors)} tensors",
            where=where,
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    needed = {name: parameter.numel() for name, parameter in model.named_parameters()}
    there = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if sum(needed.values()) > _LARGER * there:
        largest = max(needed, key=lambda name: needed[name])
        raise UserError(
            largest,
            "correct the sizes, or download the model again",
            value=list(model.get_parameter(largest).shape),
            why=f"a model of these sizes has {sum(needed.values())} parameters, but the weights have only {there}",
            where=where,
        )
