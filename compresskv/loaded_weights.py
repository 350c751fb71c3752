"""Identify a model in memory by the files it was loaded from, unless it was changed since.

The name is not enough: two folders may have the same name, and a model keeps its path when it is trained, edited, or
merged with adapters.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from compresskv import checkpoints, model_files
from compresskv.errors import UserError
from compresskv.model_config import name_of

VALUES = 1 << 18
"""About the most values that are compared per tensor, in whole, evenly spaced rows. They include every head and column
of a projection of 4,096. Smaller tensors are compared whole.
"""

UNKNOWN = "in no folder"
"""The fingerprint of a model without files; it matches no calibration."""

CHANGED = "changed after it was loaded"
"""The fingerprint of a model whose weights differ from its files; it matches no calibration."""


def identity(model: PreTrainedModel) -> tuple[str, str | None]:
    """The name of the model loaded from `model.name_or_path`, and its fingerprint as `models.load` gives it.

    For a GGUF file and its safetensors copy, both are the file's, if `models.load` made the copy. The fingerprint is
    `CHANGED` where values of the weights in memory are not those in the files, and None where there are no files to
    compare with.
    """
    path = model.name_or_path
    folders = _folders(path)
    weights = [folder for folder in folders if _has_weights(folder)]
    copies = [copy for folder in folders for file in _gguf_files(folder) for copy in checkpoints.copies(file)]
    code = type(model).__module__.startswith("transformers_modules")
    for folder in (*weights, *copies):
        if not _holds(folder, model):
            continue
        if of_gguf := checkpoints.gguf_of_copy(folder):
            return of_gguf
        if folder in weights:
            revision = None if folder == Path(path) else folder.name
            return name(model), checkpoints.fingerprint(path, revision, code)
    return name(model), CHANGED if weights or copies else None


def name(model: PreTrainedModel) -> str:
    """The name of the model loaded from `model.name_or_path`, as `model.path` names it; no weights are read.

    Where the only weights there are one GGUF file, that is what was loaded.
    """
    path = model.name_or_path
    folders = _folders(path)
    files = {file.name for folder in folders for file in _gguf_files(folder)}
    if len(files) == 1 and not any(map(_has_weights, folders)):
        return name_of(files.pop())
    return name_of(path) if path else ""


def _folders(path: str) -> list[Path]:
    """The folders that `path` may have been loaded from: itself, or each commit in the hub's cache."""
    if Path(path).is_dir() or not path:
        return [Path(path)] if path else []
    repository = f"models--{path.replace('/', '--')}"
    return sorted((Path(constants.HF_HUB_CACHE) / repository / "snapshots").glob("*"))


def _gguf_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".gguf")


def _has_weights(folder: Path) -> bool:
    try:
        return bool(model_files.weights(folder))
    except UserError:  # an index that is incomplete, say: no model was loaded from there
        return False


@torch.no_grad()
def _holds(folder: Path, model: PreTrainedModel) -> bool:
    """Whether the weights of `model` are those in `folder`, cast to the dtype that they have in memory.

    Weights that a device map keeps on disk are not compared.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / name, "pt")) for name in model_files.weights(folder)]
        there = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a mapping)
        converted: dict[str, list[tuple[str, Tensor]]] = {}
        for names, tensor in _weights(model):
            if tensor.is_meta:
                continue
            name = next((name for name in names if name in there), None)
            if name is None:
                layer = re.match(r".*?\.\d+\.", names[0])  # what is converted together
                converted.setdefault(layer[0] if layer else names[0], []).append((names[0], tensor))
            elif not _equal(tensor, there[name].get_tensor(name)):
                return False
        for pairs in converted.values():
            for own, tensor in _as_saved(model, dict(pairs)).items():
                name = own if own in there else own.removeprefix(f"{model.base_model_prefix}.")
                if name not in there or not _equal(tensor, there[name].get_tensor(name)):
                    return False
    return True


def _weights(model: PreTrainedModel) -> Iterator[tuple[list[str], Tensor]]:
    """Each parameter once, with its possible names in a file: those of tied weights, and its own with and without the
    prefix of the base model.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    prefix = f"{model.base_model_prefix}."
    for key, own in names.items():
        yield [*own, *(name.removeprefix(prefix) for name in own)], tensors[key]


def _as_saved(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """These weights as `save_pretrained` names and splits them; unchanged if it fails."""
    try:
        return revert_weight_conversion(model, dict(weights))
    except Exception:  # an architecture's conversion can fail in any way
        return weights


def _equal(tensor: Tensor, saved: Tensor) -> bool:
    """Whether evenly spaced rows are equal, `saved` being cast to the dtype of `tensor`, as when it is loaded."""
    if tensor.shape != saved.shape:
        return False
    step = -(-tensor.numel() // VALUES)
    ours, theirs = (part[::step] if step > 1 else part for part in (tensor, saved))
    return torch.equal(ours.detach().cpu(), theirs.to(tensor.dtype))
