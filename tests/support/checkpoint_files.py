"""Change the files in a checkpoint folder."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set fields of a JSON file, which is created if missing."""
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def change(folder: Path, tensors: dict[str, Tensor | None]) -> None:
    """Replace or add tensors by name; None removes one."""
    weights = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
