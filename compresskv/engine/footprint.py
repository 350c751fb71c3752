"""Forecast the memory of a prompt and its settings from the model's shape."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv.engine.backends import flash_serves
from compresskv.engine.live_bytes import LiveBytesMode
from compresskv.engine.model_shape import evicting_layers, head_dim, kv_heads
from compresskv.engine.ragged import MOST_PADDING
from compresskv.engine.rows import ROUNDING
from compresskv.eviction import BLOCK, LayerPrefill, LayerScores, Scorer, observe, observers, score


@dataclass(frozen=True)
class ScoringBytes:
    """Bytes of all layers' `scores` and of their `rankings`, and the extra bytes while one layer is scored."""

    scores: int
    rankings: int
    passing: int


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model of this shape takes in addition to its weights for a prompt of `length` tokens.

    `backend` is a name in `hardware.BACKENDS`. If a configuration lacks a size, the most common size of architectures
    is used.
    """

    model: PreTrainedModel
    length: int
    backend: str = "sdpa"

    @property
    def prompt(self) -> int:
        """Bytes of the complete keys and values of the prompt."""
        evicting, sliding = self._layers
        return (evicting * self.length + sum(sliding)) * self._token_bytes

    def activations(self, chunk: int) -> int:
        """Return the peak bytes of a layer's forward pass over `chunk` tokens: in the MLP, or in attention.

        In the MLP, four hidden states (the embeddings, the layer's input, the residual and its norm) and three
        intermediate states are alive; in attention, five hidden states, and the cosines and sines of all positions.
        """
        config = self._config
        hidden, angles = config.hidden_size, 2 * self._head_dim
        intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
        mlp = chunk * (4 * hidden + 3 * intermediate + angles) * self._itemsize
        attention = chunk * (5 * hidden + angles) * self._itemsize
        widths = self._widths(chunk)
        masks = [self._mask(chunk, width) for width in widths]
        # A mask serves all layers of its kind. The mask of a sliding window is made from two masks.
        making = max((mask for mask, (_, slides) in zip(masks, widths, strict=True) if slides), default=0)
        return sum(masks) + max(mlp, attention + max([making, *map(self._repeats, widths)]))

    def _widths(self, chunk: int) -> list[tuple[int, bool]]:
        """Return the number of keys that each kind of layer attends to, and whether its window hides some keys."""
        evicting, _ = self._layers
        widths = [(self.length, False)] if evicting else []
        for window in dict.fromkeys(self._windows):
            widths.append((min(self.length, window - 1 + chunk), self.length > window))
        return widths

    def _mask(self, chunk: int, width: tuple[int, bool]) -> int:
        """Return the bytes of a mask [chunk, keys] to add to logits, if sdpa needs a mask."""
        (keys, slides), cuda = width, self.model.device.type == "cuda"
        masked = self.backend != "flash_attention_2" and (slides or (chunk < self.length and not cuda))
        return chunk * keys * self._itemsize if masked else 0

    def _repeats(self, width: tuple[int, bool]) -> int:
        """Return the bytes of keys and values repeated for every query head, if sdpa on CUDA needs them."""
        (keys, slides), config = width, self._config
        if self.backend == "flash_attention_2" or self.model.device.type != "cuda":
            return 0
        if kv_heads(config) == config.num_attention_heads:
            return 0
        repeats = slides or not flash_serves(self.model.dtype, self.model.device)
        return 2 * config.num_attention_heads * self._head_dim * keys * self._itemsize if repeats else 0

    def scoring(self, scorers: Collection[Scorer], window: int) -> ScoringBytes:
        """Measure the bytes for scoring on two short prompts and extrapolate: they grow linearly with the prompt."""
        if not scorers:
            return ScoringBytes(0, 0, 0)
        short, long = (max(window, 1) + 64 * times for times in (2, 4))
        low, high = (self._score(scorers, window, length) for length in (short, long))

        def at_length(a: int, b: int) -> int:
            return max(a + (b - a) * (self.length - short) // (long - short), 0)

        layers = self._layers[0]
        return ScoringBytes(
            layers * at_length(low.scores, high.scores),
            layers * at_length(low.rankings, high.rankings),
            at_length(low.passing, high.passing),
        )

    @torch.no_grad()
    def _score(self, scorers: Collection[Scorer], window: int, length: int) -> ScoringBytes:
        """Observe and score one layer of `length` random tokens."""
        config, dtype = self._config, self.model.dtype
        shape = (kv_heads(config), length, self._head_dim)
        keys = torch.rand(shape).to(dtype)
        asked = torch.rand(config.num_attention_heads, length, self._head_dim).to(dtype)
        queries = asked[:, -max(window, 1) :].clone()
        observed, scaling = observers(scorers), self._head_dim**-0.5
        layer = LayerPrefill(0, queries, keys, keys, scaling, observed, answer=asked[:, :BLOCK])
        scored: list[LayerScores] = []
        with LiveBytesMode([keys, asked, queries]) as mode:
            for scorer, observer in observed.items():
                with suppress(Exception):  # on a real prompt, this fails only the scorer's own setting
                    observe({scorer: observer}, asked, keys, scaling)
            for scorer in scorers:
                try:
                    scored.append(score(scorer, layer))
                except Exception:
                    layer = replace(layer)  # the scorer may have changed the layer
        scores = sum(one.scores.untyped_storage().nbytes() for one in scored)
        return ScoringBytes(scores, sum(one.nbytes for one in scored) - scores, mode.live.peak - scores)

    def row(self, budget: int | None, room: int) -> int:
        """Return bytes of one setting's cache and logits while it decodes `room` new tokens. Budget None keeps all."""
        evicting, sliding = self._layers
        kept = self.length if budget is None else min(budget, self.length)
        padding = MOST_PADDING if self.backend == "sdpa" and self.model.device.type == "cuda" and budget else 1
        tokens = int(padding * (kept + ROUNDING + room))
        return (evicting * tokens + sum(sliding)) * self._token_bytes + 8 * self._config.vocab_size

    def full_row(self, room: int) -> int:
        """Return the bytes of the full cache in addition to the prompt, if it decodes last.

        The prompt's layers are then freed as the cache is filled.
        """
        evicting, _ = self._layers
        prompt = evicting * self.length * self._token_bytes
        return self.row(None, room) - prompt + prompt // max(evicting, 1)

    @property
    def _config(self) -> PreTrainedConfig:
        return self.model.config.get_text_config(decoder=True)

    @property
    def _itemsize(self) -> int:
        return self.model.dtype.itemsize

    @property
    def _head_dim(self) -> int:
        return head_dim(self._config)

    @property
    def _token_bytes(self) -> int:
        """Bytes of the keys and values of one token in one layer."""
        return 2 * kv_heads(self._config) * self._head_dim * self._itemsize

    @property
    def _windows(self) -> Sequence[int]:
        """The windows of the sliding-window layers."""
        windows = (options.get("sliding_window") for options in get_layer_types_and_kwargs(self._config)[1])
        return [window for window in windows if window]

    @property
    def _layers(self) -> tuple[int, list[int]]:
        """The number of layers that evict, and the number of tokens that each sliding-window layer holds."""
        # A window of n tokens has n − 1 cached tokens and the token that attends to them.
        return len(evicting_layers(self._config)), [min(self.length, window - 1) for window in self._windows]
