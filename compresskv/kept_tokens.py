"""Kept tokens as a file: which tokens of one prompt each KV head keeps, for engines that decode from them.

A safetensors file with three tensors:

    layers  [layers], int32            indices, in the model, of the layers that evict; layers with a sliding window
                                       are not listed
    counts  [layers, kv_heads], int32  number of tokens that each KV head keeps
    tokens  [sum of counts]            positions in the prompt from 0, ascending within a KV head, one KV head after the
                                       other; uint16, or uint32 if more than 65,536 tokens were compressed

Its metadata are texts: `format` ("compresskv.kept/1"); `compressed_tokens`, how many tokens at the start of the prompt
were compressed; `compressed_sha256`, the hash of their ids; and what the writer adds (`evals.running.export`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from transformers import PreTrainedConfig

from compresskv.engine.model_shape import evicting_layers, kv_heads
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores, PromptShape
from compresskv.selection import Kept, counts

FORMAT = "compresskv.kept/1"

NARROW = 1 << 16
"""Positions below this value are stored in two bytes, larger positions in four."""


def prompt_sha256(ids: Tensor) -> str:
    """Return 16 digits of the SHA-256 of token ids [*] as little-endian int64."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]


def token_bytes(length: int) -> int:
    """Return the bytes that one position among `length` tokens takes."""
    return 2 if length <= NARROW else 4


def encoded(kept: Kept, config: PreTrainedConfig, ids: Tensor, about: Mapping[str, str]) -> bytes:
    """Return the bytes of a file with the `kept` positions of the compressed tokens `ids` [compressed]."""
    metadata = {"format": FORMAT, "compressed_tokens": str(ids.numel()), "compressed_sha256": prompt_sha256(ids)}
    heads = [positions for layer in kept for positions in layer]
    tensors = {
        "layers": np.array(evicting_layers(config), np.int32),
        "counts": np.array(counts(kept), np.int32),
        "tokens": torch.cat([positions.cpu() for positions in heads]).numpy().astype(f"<u{token_bytes(ids.numel())}"),
    }
    return save(tensors, {**about, **metadata})


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The content of a file: the indices of the `layers` that evict, the `kept` positions of each, and `metadata`."""

    path: Path
    layers: list[int]
    kept: Kept
    metadata: Mapping[str, str]

    @property
    def length(self) -> int:
        """Number of compressed tokens."""
        return int(self.metadata["compressed_tokens"])

    @property
    def method(self) -> EvictionMethod:
        """A method that keeps these tokens at any budget."""
        return EvictionMethod(_Scorer(self), _Allocator(self))

    def refuse_other_model(self, config: PreTrainedConfig) -> None:
        """Raise `UserError` unless the model evicts in the same layers and has the same number of KV heads."""
        theirs = len(self.kept[0]) if self.kept else 0
        layers, heads = evicting_layers(config), kv_heads(config)
        if self.layers != layers or theirs != heads:
            raise UserError(
                "kept",
                f"use it with {self.metadata.get('model', 'the model that it was made with')}",
                value=self.path,
                why=f"it has {theirs} KV heads in each of {len(self.layers)} layers that evict, but the model has "
                f"{heads} in each of {len(layers)}, or other layers evict",
            )

    def refuse_other_prompt(self, ids: Tensor) -> None:
        """Raise `UserError` unless `ids` [*] are the tokens that were compressed."""
        if prompt_sha256(ids) != self.metadata["compressed_sha256"]:
            raise UserError(
                "kept",
                f"pass the {self.length} token ids of the exported prompt first, and later tokens afterwards",
                value=self.path,
                why=f"it was made with a different prompt than these {ids.numel()} token ids",
            )


def read(path: str | Path) -> KeptTokens:
    """Read a file of kept tokens. Raises `UserError` if it cannot be read or is inconsistent."""
    path = Path(path)

    def fault(why: str) -> UserError:
        return UserError("kept", "choose a file that export.kept=true wrote", value=path, why=why)

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise fault(f"its format is {metadata.get('format')}, not {FORMAT}")
            layers, tally, tokens = (file.get_tensor(name).astype(np.int64) for name in ("layers", "counts", "tokens"))
        length = int(metadata["compressed_tokens"])
        metadata["compressed_sha256"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise fault(f"it cannot be read ({' '.join(str(error).split())})") from error
    if layers.ndim != 1 or tally.ndim != 2 or tokens.ndim != 1 or len(tally) != len(layers) or not tally.size:
        raise fault("its tensors have wrong shapes")
    if (tally < 0).any() or tally.sum() != tokens.size:
        raise fault(f"it has {tokens.size} tokens, but its counts add up to {tally.sum()}")
    heads = np.split(tokens, tally.ravel().cumsum()[:-1])
    if any(head.size and (head[-1] >= length or (np.diff(head) <= 0).any()) for head in heads):
        raise fault("the tokens of a KV head are not sorted, or are beyond the prompt")
    positions = iter([torch.from_numpy(head) for head in heads])
    return KeptTokens(path, layers.tolist(), [[next(positions) for _ in layer] for layer in tally], metadata)


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Score kept tokens 1 and other tokens 0: [kv_heads, prompt], float32."""

    file: KeptTokens

    @property
    def window(self) -> int:
        return 0

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores = torch.zeros(layer.kv_heads, layer.length)
        for head, positions in enumerate(self.file.kept[layer.index]):
            scores[head, positions] = 1
        return LayerScores(scores.to(layer.keys.device))


@dataclass(frozen=True, eq=False)
class _Allocator:
    """Allocate to each KV head the number of tokens that the file has for it."""

    file: KeptTokens

    def __call__(self, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[tuple[int, ...]]:
        return [tuple(map(len, layer)) for layer in self.file.kept[: len(scores)]]
