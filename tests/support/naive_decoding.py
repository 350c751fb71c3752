"""Naive reference implementation of eviction during decode, for one setting.

Keeps tensors per KV head and rebuilds them at every eviction.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.setting import Setting
from compresskv.eviction import LayerPrefill
from compresskv.schedule import EvictionSchedule
from compresskv.selection import Kept, select
from tests.support.naive import attending_by


class NaiveDecoding:
    """A model with keys, values and positions for each layer and KV head, and the queries of all positions."""

    def __init__(self, model: PreTrainedModel, setting: Setting, schedule: EvictionSchedule, kept: Kept):
        self.model, self.setting, self.schedule, self.kept = model, setting, schedule, kept
        layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
        self.keys: list[list[Tensor]] = [[torch.empty(0)] * heads for _ in range(layers)]
        self.values: list[list[Tensor]] = [[torch.empty(0)] * heads for _ in range(layers)]
        self.positions: list[list[list[int]]] = [[[] for _ in range(heads)] for _ in range(layers)]
        self.queries: list[list[Tensor]] = [[] for _ in range(layers)]
        self.seen, self.prompt, self.end = 0, 0, 0
        self.sizes: list[list[list[int]]] = []

    def _attend(self, module, query, key, value, attention_mask, scaling, **kwargs):
        layer, new = module.layer_idx, query.shape[2]
        self.scaling = scaling
        self.queries[layer] += query[0].unbind(1)
        outputs = []
        for head in range(key.shape[1]):
            held = len(self.positions[layer][head])
            self.keys[layer][head] = torch.cat([self.keys[layer][head].view(held, key.shape[-1]), key[0, head]])
            self.values[layer][head] = torch.cat([self.values[layer][head].view(held, key.shape[-1]), value[0, head]])
            self.positions[layer][head] += range(self.seen, self.seen + new)
            groups = query.shape[1] // key.shape[1]
            logits = query[0, head * groups : (head + 1) * groups] @ self.keys[layer][head].T * scaling
            future = torch.ones(new, held + new, dtype=torch.bool).triu(held + 1)
            outputs.append(logits.masked_fill(future, float("-inf")).softmax(-1) @ self.values[layer][head])
        return torch.cat(outputs)[None].transpose(1, 2), None

    def feed(self, ids: Tensor) -> Tensor:
        """Process `ids`; returns the logits [vocabulary] after them."""
        positions = torch.arange(self.seen, self.seen + ids.numel())
        with attending_by(self.model, self._attend):
            logits = self.model(ids[None], position_ids=positions[None], use_cache=False).logits[0, -1]
        self.seen += ids.numel()
        return logits

    def keep(self, layer: int, head: int, places: Tensor) -> None:
        self.keys[layer][head], self.values[layer][head] = (
            held[layer][head][places] for held in (self.keys, self.values)
        )
        self.positions[layer][head] = [self.positions[layer][head][place] for place in places.tolist()]

    def evict(self, layer: int) -> None:
        method, config = self.setting.method, self.model.config
        groups = config.num_attention_heads // config.num_key_value_heads
        heads = list(range(config.num_key_value_heads))
        limits = []
        for head in heads:
            capacity = self.kept[layer][head].numel()
            if self.setting.keeps_all(self.prompt):
                capacity = self.setting.tokens(self.prompt)
            limits.append(capacity)
        alike = len({len(self.positions[layer][head]) for head in heads}) == 1
        for part in [heads] if alike else [[head] for head in heads]:
            held = len(self.positions[layer][part[0]])
            protected = 0
            if self.schedule.protect == "prompt":
                protected = sum(position < self.end for position in self.positions[layer][part[0]])
            capacity = limits[part[0]]
            if self.schedule.protect == "prompt":
                capacity = max(capacity - protected, method.window, 1)
            if held - protected <= capacity:
                continue
            recent = torch.stack(self.queries[layer][-method.window :], 1)
            queries = recent[part[0] * groups : (part[-1] + 1) * groups]
            keys, values = (torch.stack([of[layer][head] for head in part]) for of in (self.keys, self.values))
            scores = method.scorer(LayerPrefill(layer, queries, keys, values, self.scaling))
            scores = type(scores)(scores.scores[:, protected:])
            for head, places in zip(part, select(scores, capacity - method.window, held - protected), strict=True):
                self.keep(layer, head, torch.cat([torch.arange(protected), places + protected]))

    def generate(self, ids: Tensor, new: int, context: int | None = None) -> list[int]:
        """Generate greedy tokens after `ids`, of which the first `context` are compressed (None: all)."""
        self.prompt, self.end = ids.numel() if context is None else context, ids.numel()
        logits = self.feed(ids[: self.prompt])
        for layer, heads in enumerate(self.kept):
            for head, places in enumerate(heads):
                self.keep(layer, head, places)
        if self.prompt < ids.numel():
            logits = self.feed(ids[self.prompt :])
        tokens: list[int] = []
        for step in range(new):
            tokens.append(int(logits.argmax()))
            if step + 1 < new:
                logits = self.feed(torch.tensor(tokens[-1:]))
                if (step + 1) % self.schedule.interval == 0 and self.setting.method:
                    for layer in range(len(self.kept)):
                        self.evict(layer)
                    self.sizes.append([[len(head) for head in layer] for layer in self.positions])
        return tokens
