"""A cache whose logical length is the length of the prompt, and whose physical length is the budget."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer, get_layer_types_and_kwargs

from compresskv.engine.backends import Backend, backend_of
from compresskv.engine.decode_eviction import DecodeEviction
from compresskv.engine.rows import Group, LayerRows, Source
from compresskv.errors import UserError
from compresskv.eviction import HiddenStates, LayerPrefill, Scorer, needs_hidden_states, observe, observers


def compact(tensor: Tensor) -> Tensor:
    """Return `tensor` in storage of exactly its size. A view, for example of a fused projection, is copied."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class EvictedLayer(CacheLayerMixin):
    """One cache layer. It first holds the complete prompt and, after eviction, `rows`.

    `prompt_length` None means that the first forward brings the whole prompt. The last `window` queries are kept for
    scoring, and the observers of `scorers` see all queries. `on_prefill(prefill)` is called once, when the prompt is
    complete. `masked`: query heads, int64, whose queries are zero while decoding from `rows`. `on_decode(index,
    queries)` is called after each forward pass that decodes. `hidden`: the inputs that hidden.py stores if the prompt
    passes in one forward and a scorer `wants_hidden` states.
    """

    is_sliding = False
    is_croppable = True  # after the prompt; assisted decoding, which checks this, is refused by `crop`

    def __init__(
        self,
        index: int,
        window: int,
        prompt_length: int | None,
        on_prefill: Callable[[LayerPrefill], None],
        scorers: Collection[Scorer] = (),
    ):
        super().__init__()
        self.index = index
        self.window = max(window, 1)
        self.prompt_length = prompt_length
        self.on_prefill = on_prefill
        self.seen = 0
        self.token_bytes = 0
        self.queries: Tensor | None = None
        self.observed = observers(scorers)
        self.wants_hidden = any(map(needs_hidden_states, scorers))
        self.hidden: HiddenStates | None = None
        self.rows: LayerRows | None = None
        self.masked: Tensor | None = None
        self.on_decode: Callable[[int, Tensor], None] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Store the prompt unchanged. If this is only its first chunk, allocate room for the whole prompt."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.token_bytes = 2 * key_states.shape[-1] * key_states.itemsize
        self.is_initialized = True
        chunk = key_states.shape[2]
        if self.prompt_length is None:
            self.prompt_length = chunk
        if self.prompt_length > chunk:
            shape = (*key_states.shape[:2], self.prompt_length, key_states.shape[3])
            self.keys, self.values = key_states.new_empty(shape), key_states.new_empty(shape)

    def begin_with(self, chunks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Store the prompt's first tokens as if computed: keys and values [1, kv_heads, *, d] of each chunk.

        The prompt must have more tokens, at least `window`.
        """
        for keys, values in chunks:
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
            start, self.seen = self.seen, self.seen + keys.shape[2]
            self.keys[:, :, start : self.seen] = keys
            self.values[:, :, start : self.seen] = values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Return the keys and values to attend to. The keys carry a reference to this layer (`cache_layer`)."""
        start, self.seen = self.seen, self.seen + key_states.shape[2]
        if self.rows is None:
            if self.is_initialized and start == self.prompt_length:
                raise UserError(
                    "model",
                    "choose a model of another architecture",
                    why="its attention does not use the keys that its cache returns, so nothing was evicted",
                )
            if key_states.shape[0] != 1:
                raise UserError("input_ids", "pass a batch of 1", why="eviction takes one prompt at a time")
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            assert self.prompt_length is not None
            if self.seen > self.prompt_length:
                raise UserError(
                    "prompt_length",
                    "pass the prompt alone, in one or several forward passes, and later tokens afterwards",
                    value=self.prompt_length,
                    why=f"with this forward pass, the cache would have {self.seen} tokens",
                )
            if self.keys is None:
                self.keys, self.values = compact(key_states), compact(value_states)
            else:
                self.keys[:, :, start : self.seen] = key_states
                self.values[:, :, start : self.seen] = value_states
            key_states, value_states = self.keys[:, :, : self.seen], self.values[:, :, : self.seen]
        key_states.cache_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def observe(self, queries: Tensor, scaling: float) -> None:
        """Store the prompt's last queries, [1, q_heads, new, d]. Calls `on_prefill` once the prompt is complete."""
        observe(self.observed, queries[0], self.keys[0, :, : self.seen], scaling)
        tail = queries[0, :, -self.window :]
        if self.queries is not None:
            tail = torch.cat([self.queries, tail], dim=1)[:, -self.window :]
        # A copy: a view would keep the queries of the whole prompt alive.
        self.queries = tail.clone()
        if self.seen == self.prompt_length:
            prefill = LayerPrefill(
                self.index, self.queries, self.keys[0], self.values[0], scaling, self.observed, self.hidden
            )
            self.observed = {}
            self.hidden = None
            self.keys = self.values = self.queries = None  # type: ignore[assignment]
            self.on_prefill(prefill)

    def get_seq_length(self) -> int:
        """Number of tokens seen, including evicted tokens: positions continue from this number."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlidingLayer(DynamicSlidingWindowLayer):
    """transformers' sliding-window layer, without keeping the memory of the whole prompt alive through a view."""

    keys: Tensor
    values: Tensor

    def begin_with(self, chunks: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Store the prompt's first `length` tokens, given the end of each chunk as the layer had held it."""
        self.lazy_initialization(*chunks[0])
        keys, values = (torch.cat(tensors, 2)[:, :, 1 - self.sliding_window :] for tensors in zip(*chunks, strict=True))
        self.keys, self.values, self.cumulative_length = compact(keys), compact(values), length

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        whole = super().update(key_states, value_states, *args, **kwargs)
        if key_states.shape[2] > 1:
            self.keys, self.values = compact(self.keys), compact(self.values)
        return whole


class EvictedCache(Cache):
    """Cache of layers that evict, and of transformers' own sliding-window layers, which are outside the budget.

    `evicting`: the layers that evict, in model order; `sliding`: the sliding-window layers, by their index in the
    model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        window: int,
        prompt_length: int | None,
        on_prefill: Callable[[LayerPrefill], None],
        scorers: Collection[Scorer] = (),
    ):
        kinds, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        layers: list[CacheLayerMixin] = []
        self.evicting: list[EvictedLayer] = []
        for kind, kwargs in zip(kinds, arguments, strict=True):
            if kind == "full_attention":
                layer = EvictedLayer(len(self.evicting), window, prompt_length, on_prefill, scorers)
                self.evicting.append(layer)
                layers.append(layer)
            elif kind == "sliding_attention":
                layers.append(SlidingLayer(**kwargs))
            else:
                raise UserError(
                    "model", "choose another model", why=f"it has {kind} layers, which eviction does not support"
                )
        super().__init__(layers=layers)
        self.config = config
        self.prompt_length = prompt_length
        self.eviction: DecodeEviction | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "EvictedCache":
        """Copy the cache with its keys and values. The configuration is shared, because it determines the attention."""
        memo[id(self.config)] = self.config
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def crop(self, max_length: int) -> None:
        """Remove the tokens from position `max_length` on. If it is not positive, remove the last −`max_length` tokens.

        Raises `UserError` for tokens of the prompt, and if a sliding window has dropped the tokens before them.
        """
        seen = self.get_seq_length()
        length = max_length if max_length > 0 else seen + max_length
        if length >= seen:
            return
        if any(layer.rows is None or length < (layer.prompt_length or 0) for layer in self.evicting):
            raise UserError(
                "max_length",
                "remove only tokens after the prompt; transformers' prompt lookup and assisted decoding, which remove "
                "more, are not supported",
                value=max_length,
                why="a compressed prompt cannot be cropped",
            )
        if any(layer.cumulative_length >= layer.sliding_window for layer in self.sliding.values()):
            raise UserError(
                "max_length",
                "before you add the tokens, copy the cache with copy.deepcopy",
                value=max_length,
                why="a sliding window has already dropped the tokens before this position",
            )
        if self.eviction:
            self.eviction.forget(seen - length)
        for sliding in self.sliding.values():
            sliding.crop(length - seen)
        for layer in self.evicting:
            layer.seen = length
        for group in self.groups:
            group.forget(seen - length)

    @property
    def sliding(self) -> dict[int, SlidingLayer]:
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, SlidingLayer)}

    @property
    def backend(self) -> Backend:
        """The backend that the model is attached to."""
        return backend_of(self.config)

    def hold(self, sources: list[Source], length: int, room: int) -> None:
        """Decode from `sources`, one per evicting layer, after a prompt of `length` tokens. Empties `sources`."""
        self.backend.end_prefill()  # not done yet if the model's own `generate` fed the prompt
        for layer, rows in zip(self.evicting, self.backend.rows(sources, room), strict=True):
            layer.seen = length
            layer.rows = rows

    def replayed(self) -> None:
        """Count a new token of each row that a replayed step has added without running `update`."""
        for layer in self.evicting:
            layer.seen += 1
        for group in self.groups:
            group.replayed()

    def evict_while_decoding(self, eviction: DecodeEviction) -> None:
        """Evict from the rows, which `hold` has filled, as `eviction` specifies."""
        self.eviction = eviction
        for layer in self.evicting:
            layer.on_decode = self._decoded

    def _decoded(self, layer: int, queries: Tensor) -> None:
        assert self.eviction is not None
        self.eviction.fed(layer, queries, [layer.rows for layer in self.evicting if layer.rows is not None])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these settings (sorted)."""
        settings = indices.tolist()
        if self.eviction:
            self.eviction.keep_settings(settings)
        for sliding in self.sliding.values():
            sliding.batch_select_indices(indices)
        for group in self.groups:
            group.keep_settings(settings)

    @property
    def groups(self) -> list[Group]:
        """The groups that the rows of all layers belong to."""
        return list(dict.fromkeys(layer.rows.group for layer in self.evicting if layer.rows is not None))

    def allocated_bytes(self, rows: Sequence[Mapping[int, int]], room: int) -> int:
        """Return the allocated size of `kept_bytes`: rounded up for the backend, with `room` for new tokens.

        `rows`: for each layer, how many folded rows have each number of kept tokens, rounded up (`rows.by_size`).
        """
        total = 0
        for of_layer, layer in zip(rows, self.evicting, strict=True):
            slots = self.backend.capacities(of_layer, room)
            total += layer.token_bytes * sum(number * slots[size] for size, number in of_layer.items())
        return total

    @property
    def sliding_bytes(self) -> int:
        """Bytes that the sliding-window layers hold."""
        return sum(
            tensor.untyped_storage().nbytes()
            for layer in self.sliding.values()
            for tensor in (layer.keys, layer.values)
        )

    def kept_bytes(self, counts: list[list[int]]) -> int:
        """Return bytes of keys and values of `counts` tokens, [layer][KV head]: 2 · Σ counts · head_dim · itemsize."""
        return sum(sum(heads) * layer.token_bytes for heads, layer in zip(counts, self.evicting, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the layers that evict, after eviction."""
        return sum(layer.rows.nbytes for layer in self.evicting if layer.rows is not None)
