"""Identify a model in memory by its weights, independent of the file and dtype they were loaded from.

The name is not enough: two folders may have the same name, and a model keeps its path when it is trained, edited, or
merged with adapters.
"""

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel

from compresskv import model_files
from compresskv.errors import UserError
from compresskv.model_config import name_of

VALUES = 1 << 16
"""Maximum number of values that are compared per tensor, evenly spaced over all rows and columns."""

DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes to which values are rounded. A float32 file and its bfloat16 copy have the same hash in bfloat16."""


@torch.no_grad()
def fingerprints(model: PreTrainedModel) -> dict[str, str]:
    """Return hashes of the weights of `model` without its head: one per dtype of `DTYPES`, keyed by its name.

    Two models are the same if one of their hashes matches (`calibration.same`). The hash covers names, shapes, up to
    `VALUES` values of each weight, the numbers of heads and the RoPE. Empty if some weights are not in memory.
    """
    body = model.base_model
    config = model.config.get_text_config(decoder=True)
    heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    architecture = [type(body).__name__, heads, getattr(config, "rope_parameters", None)]
    digests = {
        dtype: hashlib.sha256(json.dumps(architecture, default=str, sort_keys=True).encode()) for dtype in DTYPES
    }
    for name, weight in body.state_dict().items():  # quantised layers keep their weights in buffers
        if weight.is_meta:
            return {}
        values = weight.reshape(-1)
        step = -(-values.numel() // VALUES) | 1  # odd, so that the values do not all come from the same columns
        values = values[::step].cpu()
        for dtype, digest in digests.items():
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            rounded = values.to(dtype) if values.is_floating_point() else values
            digest.update(rounded.contiguous().view(torch.uint8).numpy())
    return {str(dtype).removeprefix("torch."): digest.hexdigest()[:16] for dtype, digest in digests.items()}


def name(model: PreTrainedModel) -> str:
    """Return the name of the model loaded from `model.name_or_path`, as `model.path` would give it. Reads no weights.

    If a folder holds a single GGUF file and no other weights, that file was loaded.
    """
    path = model.name_or_path
    folders = _folders(path)
    files = {file.name for folder in folders for file in folder.glob("*") if file.suffix.lower() == ".gguf"}
    if len(files) == 1 and not any(map(_has_weights, folders)):
        return name_of(files.pop())
    return name_of(path) if path else ""


def _folders(path: str) -> list[Path]:
    """Return the folders that `path` may have been loaded from: `path` itself, or each commit in the hub's cache."""
    if Path(path).is_dir() or not path:
        return [Path(path)] if path else []
    repository = f"models--{path.replace('/', '--')}"
    return sorted((Path(constants.HF_HUB_CACHE) / repository / "snapshots").glob("*"))


def _has_weights(folder: Path) -> bool:
    try:
        return bool(model_files.weights(folder))
    except UserError:  # for example an incomplete index: no model was loaded from there
        return False
