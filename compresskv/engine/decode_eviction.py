"""Evict while decoding: after every `interval` new tokens, each row is reduced to its capacity.

A row is one KV head of one layer of one setting. The setting's scorer scores the tokens that the row holds, in order of
position, as it scored the prompt. The row keeps the last `window` tokens, and the best other tokens up to its capacity:
the number of prompt tokens that it kept. The scorer uses the queries of the last `window` tokens. Positions do not
change, so RoPE does not change either.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from compresskv.engine.rows import LayerRows
from compresskv.engine.setting import Setting
from compresskv.errors import UserError, part_name
from compresskv.eviction import (
    ContinuingObserver,
    LayerPrefill,
    LayerScores,
    ObservingScorer,
    needs_answer,
    needs_hidden_states,
    observe,
    score,
)
from compresskv.schedule import EvictionSchedule
from compresskv.selection import Kept, refuse_nan, select


@dataclass(frozen=True, eq=False)
class PromptEnd:
    """The state of a layer after its prompt that evictions while decoding need.

    `queries` [q_heads, window, head_dim] of the last prompt tokens; `observed` as in `LayerPrefill`.
    """

    queries: Tensor
    scaling: float
    observed: Mapping[Any, Any]

    @classmethod
    def of(cls, layer: LayerPrefill) -> "PromptEnd":
        return cls(layer.queries, layer.scaling, layer.observed)


class DecodeEviction:
    """The evictions of one batch. `places` [setting] maps the remaining settings to their index in the original batch.

    `layers`: the `PromptEnd` of every layer that evicts. `kept`: the prompt positions that each setting kept. `length`:
    tokens of the prompt, which every row has seen. Positions are counted from the end of the prompt, so positions in
    the prompt are negative. `peaks` [place]: the largest mean number of tokens that a setting held.
    """

    def __init__(
        self,
        schedule: EvictionSchedule,
        settings: Sequence[Setting],
        layers: Sequence[PromptEnd],
        kept: Sequence[Kept],
        length: int,
    ):
        for setting in settings:
            refuse_scorer(setting, schedule)
        self.schedule, self.settings = schedule, list(settings)
        self.places = list(range(len(settings)))
        self.peaks: dict[int, float] = {}
        self.held = [[head for of_setting in kept for head in of_setting[place]] for place in range(len(layers))]
        by_setting = list(zip(settings, kept, strict=True))
        self.capacities = [
            [
                _capacity(setting, head.numel(), length)
                for setting, of_setting in by_setting
                for head in of_setting[place]
            ]
            for place in range(len(layers))
        ]
        self.kv_heads = len(self.held[0]) // len(settings) if layers else 0
        self.scalings = [layer.scaling for layer in layers]
        self.recent = [[layer.queries.expand(len(settings), -1, -1, -1)] for layer in layers]
        self.window = max(1, *(setting.window for setting in settings))
        self.since = 0
        """Number of tokens since the last eviction. Each row holds these tokens after the tokens in `held`."""
        self.end = 0
        """Position of the first token since the last eviction."""
        self.due = 0
        """How many of the tokens since the last eviction count for the interval."""
        self.counting = True
        self.protected_end = 0
        """Position up to which tokens belong to the prompt, including a question."""
        self.evicted: set[int] = set()
        """Places of the settings that have evicted a token while decoding."""
        self.observers = [self._observers(layer, i) for i, layer in enumerate(layers)]
        self.held = [[head - length for head in of_layer] for of_layer in self.held]

    @classmethod
    def joined(cls, prompts: Sequence["DecodeEviction"]) -> "DecodeEviction":
        """The evictions of the settings of several prompts as one batch; nothing has been fed to them yet."""
        made = copy.copy(prompts[0])
        for name in ("held", "capacities", "observers"):
            layers = zip(*(getattr(prompt, name) for prompt in prompts), strict=True)
            setattr(made, name, [list(chain.from_iterable(of_layer)) for of_layer in layers])
        recent = zip(*(prompt.recent for prompt in prompts), strict=True)
        made.recent = [[torch.cat([queries for (queries,) in of_layer])] for of_layer in recent]
        made.settings = list(chain.from_iterable(prompt.settings for prompt in prompts))
        made.places, made.peaks, made.evicted = list(range(len(made.settings))), {}, set()
        return made

    def _observers(self, layer: PromptEnd, place: int) -> list[list[Any]]:
        """Create each setting's observers, if its scorer has observers: one for all heads, or one per head if heads
        differ."""
        found: list[list[Any]] = []
        for number, setting in enumerate(self.settings):
            scorer = setting.method.scorer if setting.method else None
            found.append([])
            if not isinstance(scorer, ObservingScorer):
                continue
            observer, head = layer.observed[scorer], 0
            for part in self._parts(place, number):
                found[-1].append(observer.only(range(head, head + len(part)), part))
                head += len(part)
        return found

    def _parts(self, layer: int, number: int) -> list[list[Tensor]]:
        """Group the positions that the rows of a setting hold: all rows scored in one call, or each row by itself."""
        rows = self._rows(number)
        held, sizes = self.held[layer][rows], set(self.capacities[layer][rows])
        alike = len(sizes) == 1 and len({head.numel() for head in held}) == 1
        return [held] if alike else [[head] for head in held]

    def _rows(self, number: int) -> slice:
        return slice(number * self.kv_heads, (number + 1) * self.kv_heads)

    @property
    def left(self) -> int:
        """Number of new tokens until the next eviction, at least 1."""
        return max(self.schedule.interval - self.due, 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the new tokens inside the block from the interval: they belong to a question."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def fed(self, layer: int, query: Tensor, rows: Sequence[LayerRows]) -> None:
        """Store the queries of new tokens, [settings, q_heads, new, head_dim], and evict from all `rows` when due."""
        new = query.shape[2]
        self.recent[layer].append(query)
        if layer < len(self.recent) - 1:
            return
        self.since += new
        if self.counting:
            self.due += new
        else:
            self.protected_end = self.end + self.since
        for recent in self.recent:
            while sum(part.shape[2] for part in recent[1:]) >= self.since + self.window:
                recent.pop(0)
        if self.due >= self.schedule.interval:
            self._evict(rows)

    def _evict(self, rows: Sequence[LayerRows]) -> None:
        self._note_peaks()
        self.recent = [[torch.cat(recent, 2)] for recent in self.recent]
        kept = [self._ordinals(layer, of_layer) for layer, of_layer in enumerate(rows)]
        for layer, of_layer in enumerate(kept):
            new = torch.arange(self.end, self.end + self.since, device=self.held[layer][0].device)
            positions = [torch.cat([before, new]) for before in self.held[layer]]
            self.held[layer] = [
                held if ordinals is None else held[ordinals] for held, ordinals in zip(positions, of_layer, strict=True)
            ]
            (recent,) = self.recent[layer]
            self.recent[layer] = [recent[:, :, -self.window :].clone()]
        groups = dict.fromkeys(of_layer.group for of_layer in rows)
        for group in groups:
            group.evict([of for of, of_layer in zip(kept, rows, strict=True) if of_layer.group is group])
        self.end += self.since
        self.since = self.due = 0

    def _ordinals(self, layer: int, rows: LayerRows) -> list[Tensor | None]:
        """Return the indices, among the tokens held, that each row of a layer keeps; None for all."""
        found: list[Tensor | None] = []
        (recent,) = self.recent[layer]
        for number in range(len(self.settings)):
            parts = self._parts(layer, number)
            head = number * self.kv_heads
            for place, part in enumerate(parts):
                of_part = range(head, head + len(part))
                head += len(part)
                group = recent.shape[1] // self.kv_heads
                first = of_part.start % self.kv_heads
                queries = recent[number, first * group : (first + len(part)) * group]
                found += self._kept(layer, number, place, part, of_part, queries, rows)
        return found

    def _kept(
        self,
        layer: int,
        number: int,
        place: int,
        part: Sequence[Tensor],
        of_part: range,
        queries: Tensor,
        rows: LayerRows,
    ) -> Sequence[Tensor | None]:
        """Return the `_ordinals` of rows that are scored together."""
        method, observers = self.settings[number].method, self.observers[layer][number]
        if method is None:
            return [None] * len(part)
        held = part[0].numel() + self.since
        protected = self._protected(part) if self.schedule.protect == "prompt" else 0
        capacity = self.capacities[layer][of_part.start]
        if self.schedule.protect == "prompt":  # a scorer without a window also keeps one new token
            capacity = max(capacity - protected, method.window, 1)
        evicts = held - protected > capacity
        if not evicts and not observers:
            return [None] * len(part)
        keys, values = (torch.stack(tensors) for tensors in zip(*map(rows.held, of_part), strict=True))
        scaling, observed = self.scalings[layer], {}
        if observers:
            observed = {method.scorer: observers[place]}
            observe(observed, queries[:, -self.since :], keys, scaling)
        if not evicts:
            return [None] * len(part)
        last = queries[:, -max(method.window, 1) :]
        prefill = LayerPrefill(layer, last, keys, values, scaling, observed)
        scores = score(method.scorer, prefill)
        refuse_nan([scores], method.scorer, keys.dtype, lambda: [prefill.finite()])
        kept = select(_after(scores, protected), capacity - method.window, held - protected)
        if protected:
            before = torch.arange(protected, device=keys.device)
            kept = [torch.cat([before, head + protected]) for head in kept]
        self.evicted.add(self.places[number])
        if observers:
            observers[place] = observers[place].only(range(len(kept)), kept)
        return kept

    def _protected(self, part: Sequence[Tensor]) -> int:
        """Return how many tokens of the prompt, including its question, the rows hold. They come first."""
        (count,) = {int((head < self.protected_end).sum()) for head in part}
        return count + min(max(self.protected_end - self.end, 0), self.since)

    def keep_settings(self, settings: Sequence[int]) -> None:
        """Drop all settings except these (sorted)."""
        self._note_peaks()
        heads = list(chain.from_iterable(range(self.kv_heads * one, self.kv_heads * (one + 1)) for one in settings))
        for layer, recent in enumerate(self.recent):
            self.held[layer] = [self.held[layer][head] for head in heads]
            self.capacities[layer] = [self.capacities[layer][head] for head in heads]
            whole = torch.cat(recent, 2)
            self.recent[layer] = [whole[torch.tensor(settings, device=whole.device)]]
            self.observers[layer] = [self.observers[layer][one] for one in settings]
        self.settings = [self.settings[one] for one in settings]
        self.places = [self.places[one] for one in settings]

    def forget(self, tokens: int) -> None:
        """Remove the last `tokens` new tokens. Raises `UserError` for tokens that an eviction has seen."""
        if tokens > self.since:
            raise UserError(
                "max_length",
                "before you add the tokens, copy the cache with copy.deepcopy",
                value=tokens,
                why=f"the cache evicted tokens {self.since} tokens ago, while decoding",
            )
        if not tokens:
            return
        self.since -= tokens
        self.due = max(self.due - tokens, 0)
        for layer, recent in enumerate(self.recent):
            self.recent[layer] = [torch.cat(recent, 2)[:, :, :-tokens]]

    def _note_peaks(self) -> None:
        for number, place in enumerate(self.places):
            rows = self._rows(number)
            sizes = [head.numel() for layer in self.held for head in layer[rows]]
            if sizes:
                self.peaks[place] = max(self.peaks.get(place, 0.0), fmean(sizes) + self.since)

    def peak(self, place: int) -> float:
        """Return the largest mean number of tokens that a setting of the batch has held, per layer and KV head."""
        if place in self.places:
            self._note_peaks()
        return self.peaks.get(place, 0.0)


def _capacity(setting: Setting, kept: int, length: int) -> int:
    """Return a row's capacity: the number of prompt tokens that it kept, or the budget if it kept the whole prompt."""
    budget = setting.tokens(length)
    if setting.method is None or budget is None:
        return kept
    return max(budget, setting.window) if setting.keeps_all(length) else kept


def refuse_scorer(setting: Setting, schedule: EvictionSchedule) -> None:
    """Raise `UserError` for a setting whose scorer cannot evict while decoding."""
    scorer = setting.method.scorer if setting.method else None
    if scorer is None or not schedule.decodes:
        return
    why = ""
    if needs_answer(scorer):
        why = f"{part_name(scorer)} scores with the full cache's answer, so new tokens would change nothing"
    elif needs_hidden_states(scorer):
        why = f"{part_name(scorer)} reads the hidden states of a prompt, which a cache does not store"
    elif isinstance(scorer, ObservingScorer) and not isinstance(scorer.observer(), ContinuingObserver):
        why = f"{part_name(scorer)} observes all queries of a prompt, and its observer has no method `only`"
    if why:
        fix = f"set eviction.when={schedule.once.when}"
        raise UserError("eviction.when", fix, value=schedule.when, why=why)


def _after(scores: LayerScores, protected: int) -> LayerScores:
    """Return the scores without the first `protected` tokens."""
    if not protected:
        return scores
    refuse_unnested([scores])
    contest = None if scores.contest is None else scores.contest[:, protected:]
    return replace(scores, scores=scores.scores[:, protected:], contest=contest)


def refuse_unnested(scores: Iterable[LayerScores]) -> None:
    """Raise `UserError` if the scores of the prompt's tokens cannot be left out."""
    if not all(layer.nested for layer in scores):
        raise UserError(
            "eviction.protect",
            "set eviction.protect=none",
            value="prompt",
            why="the scorer keeps different tokens at each budget, so prompt tokens cannot be excluded",
        )


def refuse_scores(setting: Setting, schedule: EvictionSchedule, scores: Sequence[LayerScores], kept: Kept) -> None:
    """Raise `UserError` if the prompt's scores show that a setting cannot evict while decoding.

    There are two cases. The scorer has one choice for all KV heads of a layer, but the heads keep different numbers of
    tokens. Or the prompt is protected, but the scorer cannot leave out tokens.
    """
    if schedule.protect == "prompt":
        refuse_unnested(scores)
    ragged = any(len({head.numel() for head in layer}) > 1 for layer in kept)
    if ragged and setting.method and len(kept[0]) > 1 and any(layer.shared for layer in scores):
        raise UserError(
            "eviction.when",
            "evict after the prompt alone, or choose another method/allocator",
            why=f"{part_name(setting.method.scorer)} makes one choice for all KV heads of a layer, but while decoding "
            "these heads hold different tokens",
        )
