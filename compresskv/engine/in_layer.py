"""Evict inside each layer, as soon as its attention is done: the full cache of all layers never exists at once.

Used for memory and latency measurements, and for `compresskv.compressed`.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from compresskv.engine.attention import is_attached
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode import Stopping, decode
from compresskv.engine.decode_eviction import DecodeEviction, PromptEnd, refuse_scores
from compresskv.engine.forward import forward_given
from compresskv.engine.generation import Generation
from compresskv.engine.prefill import forward_prompt, prompt_shape
from compresskv.engine.rows import Source
from compresskv.engine.setting import Setting
from compresskv.errors import UserError, part_name
from compresskv.eviction import Capacity, LayerPrefill, LayerScores, refuse_writes, score
from compresskv.installed import generate_argument
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import Kept, answered, counts, keep_all, refuse_nan, select, tighten

WASTE = 1.5
"""Before the last layer is seen, a layer is shrunk only if it holds more than this many times its capacity."""


class LayerwiseCache(EvictedCache):
    """A cache of one prompt that evicts by itself. Afterwards `kept` contains the kept prompt positions.

    `prompt_length` None: the first forward brings the whole prompt. `room` new tokens are allocated ahead. With a
    `schedule` that decodes, it evicts again after every interval of new tokens.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        setting: Setting,
        prompt_length: int | None = None,
        room: int = 256,
        schedule: EvictionSchedule = AFTER_PROMPT,
    ):
        scorers = setting.scorers(prompt_length, schedule.decodes)
        if setting.method and setting.needs_answer:
            raise UserError(
                "method",
                "use the shared path: run.py without eval=efficiency, or compresskv.generate",
                value=part_name(setting.method.scorer),
                why="it reads the full cache's answer, which does not exist yet when a layer is evicted",
            )
        super().__init__(config, setting.window, prompt_length, self._evict, scorers)
        self.setting = setting
        self.room = room
        self.schedule = AFTER_PROMPT if setting.budget is None else schedule  # the full cache never evicts
        self._ends: list[PromptEnd] = []
        self.kept: Kept = []
        self._complete: list[Source] = []
        self._held: list[HeldLayer] = []
        self._scores: list[LayerScores] = []
        self._finite: list[Tensor] = []
        self._capacities: list[Capacity] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Update as in transformers. Raises `UserError` if the model's own attention would misread the kept tokens."""
        if not is_attached(self.config):
            raise UserError(
                "cache",
                "use it inside `with compressed(...) as cache:`",
                why="the cache is compressed, but the model uses its own attention again",
            )
        if key_states.requires_grad:
            raise UserError(
                "cache",
                "call the model in torch.no_grad()",
                why="gradients are enabled, but evicted tokens have no gradients",
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def __bool__(self) -> bool:
        """Return whether it has tokens. Phi-3's `generate` replaces a cache that is true and short, even if empty."""
        return self.get_seq_length() > 0

    def expect(self, length: int) -> None:
        """Set the length of the prompt, in tokens, before its first token arrives. The prompt may arrive in chunks."""
        self.prompt_length = length
        for layer in self.evicting:
            layer.prompt_length = length

    def refuse_shorter(self, length: int) -> None:
        """Raise `UserError` if only `length` tokens of a longer prompt arrive."""
        if length < (self.prompt_length or 0):
            raise UserError(
                "prompt_length",
                "pass the length of the prompt, or None if one forward pass has the whole prompt",
                value=self.prompt_length,
                why=f"the cache received only {length} tokens, so nothing is compressed",
            )

    def refuse_unused(self) -> None:
        """Raise `UserError` if no prompt was compressed."""
        if not any(layer.get_seq_length() for layer in self.layers):
            raise UserError(
                "cache",
                f"pass {generate_argument()}=cache to generate, or to the model",
                why="it did not receive a prompt, so nothing was compressed",
            )
        self.refuse_shorter(self.get_seq_length())
        if any(layer.rows is None for layer in self.evicting):
            raise UserError(
                "model",
                "choose a model of another architecture",
                why="its attention does not use the keys that its cache returns, so nothing was evicted",
            )

    def _evict(self, layer: LayerPrefill) -> None:
        """Compress `layer`, and shrink the layers before it if its scores require this."""
        if self.schedule.decodes:
            self._ends.append(PromptEnd.of(layer))
        method, budget = self.setting.method, self.setting.tokens(layer.length)
        if method is None or budget is None or self.setting.keeps_all(layer.length):
            self.kept.append(keep_all(layer.kv_heads, layer.length, layer.keys.device))
            self._complete.append(Source(layer.keys, layer.values, list(enumerate(self.kept[-1])), layer.kv_heads))
        else:
            self._scores.append(score(method.scorer, layer))
            refuse_writes(self._scores, "method.scorer", method.scorer)
            self._finite.append(layer.finite())
            answer = answered(method, list(self._scores), prompt_shape(self, layer, method), budget)
            refuse_writes(self._scores, "method.allocator", method.allocator)
            self._capacities = tighten(self._capacities, answer, layer.length - method.window)
            for index in range(len(self._held)):
                self._shrink(index, WASTE)
            kept = select(self._scores[-1], self._capacities[-1], layer.length)
            refuse_writes(self._scores, "method.scorer", method.scorer)
            self._held.append(HeldLayer.part_of(layer, kept))
        if layer.index == len(self.evicting) - 1:
            self._finish(layer.length)

    def _shrink(self, index: int, waste: float = 1) -> None:
        """Drop tokens beyond the capacity of the layer at `index`, if it holds more than `waste` times its capacity."""
        held, capacity = self._held[index], self._capacities[index]
        heads = len(held.kept)
        allowed = (heads * capacity if isinstance(capacity, int) else sum(capacity)) + heads * self.setting.window
        if len(held.keys) > waste * allowed:
            if not self._scores[index].nested:
                raise UserError(
                    "method/allocator",
                    "use method/allocator=uniform",
                    value=part_name(self.setting.method.allocator) if self.setting.method else ...,
                    why="it lowers the budgets of earlier layers, but the scorer keeps different tokens at each budget",
                )
            self._held[index] = held.only(select(self._scores[index], capacity, held.length))

    def _finish(self, length: int) -> None:
        """Prepare to decode from the kept tokens, after the last layer."""
        if self._held and self.setting.method:
            refuse_nan(self._scores, self.setting.method.scorer, self._held[0].keys.dtype, lambda: self._finite)
        sources, self._complete = self._complete, []
        for index in range(len(self._held)):
            self._shrink(index)
            self.kept.append(self._held[index].kept)
            sources.append(self._held[index].source())
        if self.schedule.decodes:
            refuse_scores(self.setting, self.schedule, self._scores, self.kept)
        self._held.clear()
        self._scores.clear()
        self._finite.clear()
        self.hold(sources, length, self.room)
        if self.schedule.decodes:
            ends, self._ends = self._ends, []
            self.evict_while_decoding(DecodeEviction(self.schedule, [self.setting], ends, [self.kept], length))


@dataclass(frozen=True, eq=False)
class HeldLayer:
    """The tokens of a layer until the last layer is seen.

    `keys` and `values` [tokens, head_dim], one KV head after the other. `kept`: the prompt positions of each head.
    `places` [tokens]: these positions for all heads at once, as position + `length` · head.
    """

    length: int
    kept: list[Tensor]
    places: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def part_of(cls, layer: LayerPrefill, kept: list[Tensor]) -> "HeldLayer":
        """Copy these positions of a complete layer."""
        places = _places(kept, layer.length)
        head, position = places // layer.length, places % layer.length
        return cls(layer.length, kept, places, layer.keys[head, position], layer.values[head, position])

    def only(self, kept: list[Tensor]) -> "HeldLayer":
        """Copy these positions, which must all be held."""
        places = _places(kept, self.length)
        slots = torch.searchsorted(self.places, places)
        return HeldLayer(self.length, kept, places, self.keys[slots], self.values[slots])

    def source(self) -> Source:
        """Return a source with one folded row per KV head."""
        parts = torch.arange(len(self.keys), device=self.keys.device).split([len(head) for head in self.kept])
        return Source(self.keys[None], self.values[None], [(0, part) for part in parts], len(self.kept))


def _places(kept: list[Tensor], length: int) -> Tensor:
    """Return position + `length` · head of all kept positions, ascending: [tokens], int64."""
    if len({positions.numel() for positions in kept}) == 1:
        first = torch.arange(0, len(kept) * length, length, device=kept[0].device)
        return (torch.stack(kept) + first[:, None]).flatten()
    return torch.cat([positions + length * head for head, positions in enumerate(kept)])


@torch.no_grad()
def generate_in_layer(
    model: PreTrainedModel,
    ids: Tensor,
    setting: Setting,
    stopping: Stopping,
    chunk: int | None = None,
    context: int | None = None,
    schedule: EvictionSchedule = AFTER_PROMPT,
) -> Generation:
    """Generate like `generate` for one setting, evicting inside each layer. `model` must be `attached`."""
    length = ids.numel() if context is None else context
    question = ids[length:]
    cache = LayerwiseCache(model.config, setting, length, question.numel() + stopping.max_new_tokens, schedule)
    logits = forward_prompt(model, ids[:length], cache, chunk)
    if question.numel():
        with cache.eviction.paused() if cache.eviction else nullcontext():
            logits = forward_given(model, question, 1, cache, length, logits_to_keep=1)[0, -1]
    tokens = decode(model, cache, logits, ids.numel(), 1, stopping, ids)[0]
    tally = counts(cache.kept)
    peak, later = (cache.eviction.peak(0), 0 in cache.eviction.evicted) if cache.eviction else (None, False)
    sizes = cache.kept_bytes(tally), cache.sliding_bytes
    return Generation(tokens, tally, *sizes, peak_kept=peak, evicted_later=later, positions=cache.kept)
