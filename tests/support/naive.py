"""Naive reference implementation of eviction: complete caches, explicit masks, plain attention, one row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from compresskv.engine.setting import Setting
from compresskv.eviction import LayerPrefill, PromptShape
from compresskv.selection import running_capacities


def attention_of(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Compute every layer's attention over the prompt with transformers' eager code: [q_heads, prompt, prompt]."""
    original = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return [weights[0] for weights in model(ids[None], output_attentions=True).attentions]
    finally:
        model.set_attn_implementation(original)


class FromAttention(LayerPrefill):
    """A layer whose window attention is the model's attention, stored in `queries`, instead of being recomputed."""

    def window_attention(self, window: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
        return self.queries[:, -window:]


def kept_positions(model: PreTrainedModel, ids: Tensor, setting: Setting, evicting: list[int]) -> list[list[set[int]]]:
    """Return the kept prompt positions of each evicting layer and KV head, selected by sorting in Python."""
    length, config = ids.numel(), model.config
    if setting.keeps_all(length):
        return [[set(range(length))] * config.num_key_value_heads for _ in evicting]
    weights = attention_of(model, ids)
    blank = torch.zeros(config.num_key_value_heads, length, 1)
    layers = [FromAttention(i, weights[layer], blank, blank, 1.0) for i, layer in enumerate(evicting)]
    scores = [setting.method.scorer(layer) for layer in layers]
    window = setting.window
    shape = PromptShape(len(evicting), config.num_key_value_heads, length, window)
    kept = []
    for score, capacity in zip(scores, running_capacities(setting.method, scores, shape, setting.budget), strict=True):
        heads = []
        for head, row in enumerate(score.scores.tolist()):
            count = capacity if isinstance(capacity, int) else capacity[head]
            best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
            heads.append(set(best) | set(range(length - window, length)))
        kept.append(heads)
    return kept


def logits(query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding: int | None) -> tuple[Tensor, Tensor]:
    """Return masked logits [1, q_heads, new, total], and the values repeated for every query head."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    made = query @ key.transpose(2, 3) * scaling
    new, total = made.shape[2:]
    row, column = torch.arange(total - new, total)[:, None], torch.arange(total)
    visible = column <= row
    if sliding is not None:
        visible &= column > row - sliding
    return made.masked_fill(~visible, float("-inf")), value


@contextmanager
def attending_by(model: PreTrainedModel, attention: Callable[..., Any]) -> Iterator[None]:
    """Run `model` with this attention function and without masks or gradients."""
    AttentionInterface.register("naive", attention)
    AttentionMaskInterface.register("naive", lambda *args, **kwargs: None)
    original = model.config._attn_implementation
    model.set_attn_implementation("naive")
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(original)


def generate(
    model: PreTrainedModel,
    ids: Tensor,
    setting: Setting,
    new: int,
    evicting: list[int],
    context: int | None = None,
    kept: list[list[set[int]]] | None = None,
) -> list[Tensor]:
    """Return the logits [vocabulary] of each of `new` greedy tokens, with full caches and evicted positions masked out.

    The first `context` of `ids` are compressed (default: all); the others are processed by a second forward. `kept`:
    kept positions (default: `kept_positions`).
    """
    length = ids.numel() if context is None else context
    kept = kept or kept_positions(model, ids[:length], setting, evicting)

    def attention(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        masked, value = logits(query, key, value, scaling, sliding_window)
        if key.shape[2] > query.shape[2] and module.layer_idx in evicting:
            for head, positions in enumerate(kept[evicting.index(module.layer_idx)]):
                gone = [i for i in range(length) if i not in positions]
                masked[:, head * groups : (head + 1) * groups, :, gone] = float("-inf")
        return (masked.softmax(-1) @ value).transpose(1, 2), None

    cache, token, steps = DynamicCache(), ids, []
    with attending_by(model, attention):
        if length < ids.numel():
            model(ids[None, :length], past_key_values=cache)
            token = ids[length:]
        for _ in range(new):
            steps.append(model(token[None], past_key_values=cache).logits[0, -1])
            token = steps[-1].argmax()[None]
    return steps
