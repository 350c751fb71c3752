"""A press of kvpress as a scorer: calls its `score` with the tensors that the shared prefill provides for a layer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from baselines.kvpress.installed import kvpress
from compresskv.errors import PromptError, UserError
from compresskv.eviction import HiddenStates, LayerPrefill, LayerScores, causal_attention


@dataclass(frozen=True)
class PressScorer:
    """The scores of `press`, a class of kvpress `version`, created with `fields`.

    `window`: tokens at the end of the prompt to which the press gives the highest scores, so they are kept without
    being scored. `alike`: all KV heads have the same scores. Random numbers that the press draws are seeded by the
    layer.
    """

    press: str
    fields: tuple[tuple[str, Any], ...]
    version: str
    window: int = 0
    needs_hidden_states: bool = True
    alike: bool = False

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        scores = self.whole(layer)[:, : layer.length - self.window]
        return LayerScores(scores[:1].expand(layer.kv_heads, -1) if self.alike else scores)

    def made(self) -> Any:
        """Create an instance of the press."""
        return getattr(kvpress(), self.press)(**dict(self.fields))

    def whole(self, layer: LayerPrefill) -> Tensor:
        """Return the scores of all prompt tokens, including the window: [kv_heads, prompt]."""
        return self.score(self.made(), layer)

    def score(self, press: Any, layer: LayerPrefill, attentions: Tensor | None = None) -> Tensor:
        """Call `press.score` on a layer: [kv_heads, prompt]. Raises `UserError` if hidden states are missing."""
        hidden = layer.hidden
        if self.needs_hidden_states and hidden is None:
            raise without_hidden_states(self.press)
        module = _module(layer) if hidden is None else _with_rotary(hidden)
        states = None if hidden is None else hidden.states[None]
        kwargs = {} if hidden is None else {"position_embeddings": (hidden.cos[None], hidden.sin[None])}
        with told(self.press, layer.length), seeded(layer):
            return press.score(module, states, layer.keys[None], layer.values[None], attentions, kwargs)[0]


@dataclass(eq=False)
class AttentionSums:
    """The attention that each token received from all queries so far: `total` [q_heads, seen], float32."""

    total: Tensor = field(default_factory=lambda: torch.empty(0))

    @torch.no_grad()
    def __call__(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        before, self.total = self.total, keys.new_zeros(queries.shape[0], keys.shape[1], dtype=torch.float32)
        if before.numel():
            self.total[:, : before.shape[1]] = before
        for attention in causal_attention(queries, keys, scaling):
            self.total[:, : attention.shape[2]] += attention.sum(1)


@dataclass(frozen=True)
class ObservedPressScorer(PressScorer):
    """A press that sums the attention of all queries. It receives the sum as the attention of one query."""

    def observer(self) -> AttentionSums:
        return AttentionSums()

    def whole(self, layer: LayerPrefill) -> Tensor:
        return self.score(self.made(), layer, layer.observed[self].total[None, :, None])


def _module(layer: LayerPrefill) -> Any:
    """Create a stand-in attention module for a press that reads only keys and values."""
    return SimpleNamespace(head_dim=layer.keys.shape[-1], layer_idx=layer.index)


def _with_rotary(hidden: HiddenStates) -> Any:
    """Copy the attention module, sharing its weights, and set `rotary_emb` as kvpress does."""
    module = copy.copy(hidden.module)
    vars(module)["rotary_emb"] = hidden.rotary
    return module


def without_hidden_states(press: str) -> UserError:
    """Return the error of a press that lacks the hidden states of the prompt."""
    return UserError(
        "prefill_chunk",
        "set prefill_chunk=null",
        why=f"kvpress's {press} needs the hidden states of the whole prompt, from one forward pass",
    )


@contextmanager
def seeded(layer: LayerPrefill) -> Iterator[None]:
    """Seed random numbers with the layer's index inside the block, and restore the generators on leaving."""
    device = layer.keys.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(layer.index)
        yield


@contextmanager
def told(press: str, length: int) -> Iterator[None]:
    """Convert exceptions of a press for a prompt of `length` tokens to a `PromptError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
        raise PromptError(
            "method.scorer",
            "change its parameters, or use longer prompts",
            value=press,
            why=f"kvpress's {press} fails on a prompt of {length} tokens ({why})",
        ) from error
