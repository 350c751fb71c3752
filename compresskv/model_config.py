"""`conf/model/*.yaml` as plain data, and the names of models. Does not import torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator

from compresskv.checking import Name, PathText, Sha256


def _text(value: Any) -> Any:
    """Convert a number to text: YAML reads a directory or a name that has only digits as a number."""
    return str(value) if type(value) is int else value


def _device(device: str) -> str:
    if not re.fullmatch(r"auto|map|cpu|cuda(:\d{1,4})?", device):
        raise ValueError("choose auto, map, cpu, cuda or cuda:<number>")
    return device


ModelName = Annotated[Name, BeforeValidator(_text)]

Text = Annotated[PathText, BeforeValidator(_text)]
"""A path, or a name."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model to load, and how to run it. `compresskv.models.load(config)` loads it.

    `path`: a hub id, a local directory or a `.gguf` file. Without `path`, `package` is `<package>/<file>.gguf`, or the
    parts of one such file in order, and `sha256` is the hash of the whole file. `window` (tokens) null: the window that
    the model was trained for. `chat_template_kwargs` are passed to the tokenizer's `apply_chat_template`.

    `dtype` auto: on CUDA bfloat16 from Ampere on and float16 before, on the CPU bfloat16 if it is fast, else float32.
    `backend` auto: the first of varlen, flash_attention_2 and sdpa that can run. `device` auto: CUDA if available;
    "map": spread over all devices.
    """

    name: ModelName
    path: Text | None = None
    package: Text | tuple[Text, ...] | None = None
    sha256: Sha256 | None = None
    revision: Text | None = None
    window: Annotated[int, Ge(2), Le(100_000_000)] | None = None
    chat_template: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: Literal["auto", "varlen", "flash_attention_2", "sdpa"] = "auto"
    device: Annotated[str, AfterValidator(_device)] = "auto"
    trust_remote_code: bool = False

    @property
    def packaged(self) -> tuple[str, ...]:
        """The parts of `package` that are read; empty if `path` is set."""
        if self.path or not self.package:
            return ()
        return (self.package,) if isinstance(self.package, str) else self.package


def name_of(path: str | int) -> str:
    """Return the name of the model at `path`: the last part of a hub id or directory, or a GGUF file's stem.

    A commit's folder in the hub's cache, `models--<org>--<name>/snapshots/<commit>`, gets the name of its id. `.`, `..`
    and `~` are expanded; links are not followed.
    """
    whole = Path(os.path.abspath(os.path.expanduser(str(path))))
    if whole.parent.name == "snapshots" and (repository := whole.parts[-3]).startswith("models--"):
        return repository.rpartition("--")[2]
    return re.sub(r"(?i)\.gguf$", "", whole.name)
