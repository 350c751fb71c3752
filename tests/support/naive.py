"""Eviction as one would write it on a blackboard: complete caches, explicit masks, plain attention, one row."""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from compresskv.engine.prefill import Setting
from compresskv.eviction import LayerPrefill, PromptShape
from compresskv.selection import running_capacities


def attention_of(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Attention weights of every layer over the prompt, by transformers' eager code: [q_heads, prompt, prompt]."""
    original = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return [weights[0] for weights in model(ids[None], output_attentions=True).attentions]
    finally:
        model.set_attn_implementation(original)


class FromAttention(LayerPrefill):
    """A prefill whose window attention comes from the model itself rather than from our queries."""

    def window_attention(self, window: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
        return self.queries[:, -window:]


def kept_positions(model: PreTrainedModel, ids: Tensor, setting: Setting, evicting: list[int]) -> list[list[set[int]]]:
    """For each layer that evicts and each KV head, the prompt positions that are kept, chosen by sorting in Python."""
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


def generate(model: PreTrainedModel, ids: Tensor, setting: Setting, new: int, evicting: list[int]) -> list[Tensor]:
    """Logits [vocabulary] before each of `new` greedy tokens: full caches, evicted positions masked out by hand."""
    kept = kept_positions(model, ids, setting, evicting)
    length = ids.numel()

    def masked_attention(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.transpose(2, 3) * scaling
        new_tokens, total = logits.shape[2:]
        row = torch.arange(total - new_tokens, total)[:, None]
        column = torch.arange(total)
        visible = (column <= row).expand(query.shape[1], -1, -1).clone()
        if sliding_window is not None:
            visible &= column > row - sliding_window
        if new_tokens == 1 and module.layer_idx in evicting:
            for head, positions in enumerate(kept[evicting.index(module.layer_idx)]):
                gone = [i for i in range(length) if i not in positions]
                visible[head * groups : (head + 1) * groups, :, gone] = False
        logits = logits.masked_fill(~visible, float("-inf"))
        return (logits.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("naive_masked", masked_attention)
    AttentionMaskInterface.register("naive_masked", lambda *args, **kwargs: None)
    original = model.config._attn_implementation
    model.set_attn_implementation("naive_masked")
    cache, token, steps = DynamicCache(), ids, []
    try:
        with torch.no_grad():
            for _ in range(new):
                steps.append(model(token[None], past_key_values=cache).logits[0, -1])
                token = steps[-1].argmax()[None]
    finally:
        model.set_attn_implementation(original)
    return steps
