"""The contract of all methods, one function per check. A check returns "" or a sentence about the problem."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baselines.h2o import H2OScorer
from baselines.snapkv import SnapKVScorer
from baselines.uniform import UniformAllocator
from compresskv import selection
from compresskv.engine.attention import attached
from compresskv.engine.cache import EvictedCache
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import forward_prompt, prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import UserError, part_name
from compresskv.eviction import (
    EvictionMethod,
    LayerPrefill,
    LayerScores,
    Observation,
    PromptShape,
    needs_answer,
    needs_hidden_states,
    observers,
    score,
)
from evals.conformance.subject import GROUP, Subject, dense, evicting, half, hybrid, prompt, seen_by
from evals.running.described import describe


@dataclass(frozen=True)
class Result:
    """The result of one check: a sentence about the problem, or "" if it passed."""

    check: str
    problem: str = ""


@dataclass(frozen=True)
class Conformance:
    """The results of all checks, in order. As text, one line each."""

    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(result.check for result in self.results if result.problem)

    @property
    def passed(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        width = max(len(result.check) for result in self.results)
        lines = [f"{'FAIL' if each.problem else 'pass'}  {each.check:{width}}  {each.problem}" for each in self.results]
        return "\n".join(map(str.rstrip, lines))

    __repr__ = __str__  # shown by notebooks


Kept = list[list[list[int]]]
"""Kept prompt positions: [layer][KV head]."""

NEW = Stopping(4)

BEYOND = 40
"""Number of tokens by which prompts exceed the budget."""


def all_checks(subject: Subject) -> Conformance:
    """Run every check. Raises `UserError` if the method cannot be created, or does not support this budget."""
    method = subject.method(dense())
    method.check(subject.budget)
    if needs_answer(method.scorer):
        raise UserError(
            "method", "check another one", value=part_name(method.scorer), why="it reads the full cache's answer"
        )
    return Conformance(tuple(Result(name, problem(name, subject)) for name in CHECKS))


def problem(check: str, subject: Subject) -> str:
    """Run a check and return its result.

    For an exception, return its type, its message and the last place outside libraries.
    """
    try:
        return CHECKS[check](subject)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if "site-packages" not in frame.filename][-1]
        message = " ".join(str(error).split())
        return f"it raises {type(error).__name__} ({message}) in {Path(last.filename).name}, line {last.lineno}"


def scores(subject: Subject) -> str:
    """Check that scores are floating point, have the shape [kv_heads, past] and contain no NaN."""
    method, layers = subject.method(dense()), _layers(dense(), subject)
    for layer in layers:
        scored = method.scorer(seen_by(method, layer))
        if not isinstance(scored, LayerScores):
            return f"the scorer returns {type(scored).__name__}, not LayerScores"
        expected = (layer.kv_heads, layer.length - method.window)
        if tuple(scored.scores.shape) != expected:
            return (
                f"scores have the shape {list(scored.scores.shape)} for {layer.kv_heads} KV heads and a prompt of "
                f"{layer.length} tokens: with a window of {method.window} it is {list(expected)}"
            )
        if not scored.scores.is_floating_point() or scored.scores.isnan().any():
            return f"scores of layer {layer.index} are not all numbers of a floating-point type ({scored.scores.dtype})"
    return ""


def budget_exact(subject: Subject) -> str:
    """Check that the mean over layers and KV heads is exactly the budget."""
    for case, budget, kept in _cases(subject):
        total, wanted, rows = _totals(kept, budget)
        if total != wanted:
            return f"{case}, all {rows} layers and KV heads keep {total} tokens in total instead of {wanted}"
    return ""


def window_kept(subject: Subject) -> str:
    """Check that every KV head keeps the observation window, the last positions of the prompt."""
    window = subject.method(dense()).window
    for case, budget, kept in _cases(subject):
        length = budget + BEYOND
        for index, layer in enumerate(kept):
            if any(not set(range(length - window, length)) <= set(head) for head in layer):
                return f"{case}, layer {index} loses some of the last {window} tokens, the observation window"
    return ""


def positions(subject: Subject) -> str:
    """Check that kept positions are sorted, unique and in range."""
    for case, budget, kept in _cases(subject):
        for index, layer in enumerate(kept):
            for head in layer:
                if len(set(head)) < len(head):
                    return f"{case}, layer {index} keeps a position twice: return each past position only once"
                if head != sorted(head):
                    return f"{case}, layer {index} keeps positions that are not sorted"
                if head and not 0 <= head[0] <= head[-1] < budget + BEYOND:
                    return f"{case}, layer {index} keeps positions outside the prompt"
    return ""


def no_leak(subject: Subject) -> str:
    """Check that earlier prompts, whether shorter, longer or of equal length, do not change the result of a prompt."""
    lengths = (BEYOND, BEYOND // 2, BEYOND, 2 * BEYOND)
    prompts = [prompt(subject.budget + more, seed) for seed, more in enumerate(lengths)]
    fresh = [_answer(dense(), subject.method(dense()), ids, subject.budget) for ids in prompts]
    method = subject.method(dense())
    for place in (*range(len(prompts)), *reversed(range(len(prompts)))):
        if _answer(dense(), method, prompts[place], subject.budget) != fresh[place]:
            return "after other prompts, a prompt has different scores: keep no state between prompts"
    return ""


def writes_nothing(subject: Subject) -> str:
    """Check that no part modifies a tensor that it receives or has returned."""
    method, copies = subject.method(dense()), Copies()
    scored: list[LayerScores] = []
    for layer in _layers(dense(), subject):
        where = f"of layer {layer.index}"
        for name in ("queries", "keys", "values"):
            copies.add(f"the {name} {where}", getattr(layer, name))
        shown = replace(layer, observed=observers([method.scorer]))
        copies.add(f"the attention {where}, which scorers share", shown.window_attention(layer.queries.shape[1]))
        for observer in shown.observed.values():
            observer(layer.queries, layer.keys, layer.scaling)
            if changed := copies.changed():
                return f"its observer changes {changed}: compute new tensors"
        scored.append(method.scorer(shown.seen_by(method.scorer)))
        if changed := copies.changed():
            return f"the scorer changes {changed}: compute new tensors, as in x = x / 2 instead of x /= 2"
        for tensor in [value for value in vars(scored[-1]).values() if isinstance(value, Tensor)]:
            copies.add(f"scores {where}", tensor)
        copies.add(f"the ranking {where}", scored[-1].ranking)
        copies.add(f"the ranking {where}", scored[-1].best_heads)
        shape = PromptShape(evicting(dense()), layer.kv_heads, layer.length, method.window)
        capacities = method.allocator(list(scored), shape, subject.budget)
        if changed := copies.changed():
            return f"the allocator changes {changed}: compute new tensors"
        selection.select(scored[-1], capacities[-1], layer.length)
        if changed := copies.changed():
            return f"the order of its scores changes {changed}: compute new tensors"
    return ""


def beside_others(subject: Subject) -> str:
    """Check that a method keeps the same tokens when it runs together with other settings.

    The other settings have a wider window or an observer of all queries.
    """
    for model, sort, budget in _models_and_budgets(subject):
        ids, setting = prompt(budget + BEYOND, seed=9), Setting(subject.method(model), budget)
        window = setting.window + 16
        wide = Setting(EvictionMethod(SnapKVScorer(Observation(window)), UniformAllocator()), window + 1)
        observing = Setting(EvictionMethod(H2OScorer(), UniformAllocator()), window)
        settings = [wide, observing, setting]
        with attached(model):
            whole = prefill(model, ids, window, scorers=[each.method.scorer for each in settings if each.method])
            whole.score(settings)
            kept = whole.kept(setting)
        if _positions(kept) != _answer(model, subject.method(model), ids, budget)[0]:
            return f"budget={budget}{sort}: together with other settings it keeps different tokens than alone"
    return ""


def layer_index(subject: Subject) -> str:
    """Check that a layer's scores depend only on its tensors and its `index` among the layers that evict."""
    layers = _layers(dense(), subject)
    method = subject.method(dense())
    in_order = [_scored(method, layer) for layer in layers]
    for layer in reversed(layers):
        if not _same(_scored(subject.method(dense()), layer), in_order[layer.index]):
            return (
                f"layer {layer.index} alone has different scores than after the layers before it: take the layer's "
                "number from `layer.index`, and keep no state between layers"
            )
    for changed in range(len(layers)):
        recalibrated = subject.recalibrated(changed)
        for layer in layers:
            if layer.index != changed and not _same(_scored(recalibrated, layer), in_order[layer.index]):
                return (
                    f"the head scores of layer {changed} are used in layer {layer.index}: a calibration numbers layers "
                    "like `layer.index`, from 0, without layers that do not evict"
                )
    method = subject.method(hybrid())
    for layer in _layers(hybrid(), subject):
        _scored(method, layer)
    return ""


def gqa_grouping(subject: Subject) -> str:
    """Check that tensors of KV head k change the scores of only KV head k, of all KV heads (if shared), or of no
    head."""
    method = subject.method(dense())
    for layer in _layers(dense(), subject):
        before = _scored(method, layer)
        for head in range(layer.kv_heads):
            for name, changed in _variants(layer, head):
                after = _scored(method, changed)
                rows = {k for k in range(layer.kv_heads) if not _same([a[k] for a in after], [b[k] for b in before])}
                if rows not in (set(), {head}, set(range(layer.kv_heads))):
                    return (
                        f"the {name} of KV head {head} change the scores of KV heads {', '.join(map(str, rows))}: KV "
                        f"head k has the query heads k·G to k·G + G − 1, here G = {GROUP}"
                    )
    return ""


def shared_equals_in_layer(subject: Subject) -> str:
    """Check that eviction after the whole prefill and eviction layer by layer give the same result.

    Both must keep the same number of tokens per layer and KV head, and generate the same tokens.
    """
    for model, sort, budget in _models_and_budgets(subject):
        ids = prompt(budget + BEYOND, seed=3)
        method = subject.method(model)
        setting = Setting(method, budget)
        with attached(model):
            (shared,) = generate(model, ids, [setting], NEW)
            for chunk in (None,) if needs_hidden_states(method.scorer) else (None, budget // 2 + 1):
                in_layer = generate_in_layer(model, ids, Setting(subject.method(model), budget), NEW, chunk)
                if in_layer != shared:
                    where = f"budget={budget}{sort}" + (f", prompt in chunks of {chunk}" if chunk else "")
                    what = "generates different tokens" if in_layer.kept == shared.kept else "keeps other numbers"
                    return f"{where}: evicting inside each layer {what} than choosing after the prefill"
    return ""


def prompts_that_fit(subject: Subject) -> str:
    """Check that a prompt of at most `budget` tokens is kept whole, with the answer of the full cache."""
    return _kept_whole(subject, (subject.budget - 1, subject.budget))


def one_token_prompt(subject: Subject) -> str:
    """Check prompts of one token and prompts as long as the window."""
    return _kept_whole(subject, (1, max(subject.method(dense()).window, 1)))


def determinism(subject: Subject) -> str:
    """Check that the same prompt gets bitwise equal scores twice and keeps the same tokens."""
    ids = prompt(subject.budget + BEYOND, seed=4)
    once, twice = (_answer(dense(), subject.method(dense()), ids, subject.budget) for _ in range(2))
    return "" if once == twice else "the same prompt has different scores the second time: fix the random seed"


def equal_configurations(subject: Subject) -> str:
    """Check that two methods with the same configuration are equal.

    Otherwise they would not share scores, and results would not be resumed.
    """
    first, second = subject.method(dense()), subject.method(dense())
    if first != second or hash(first) != hash(second):
        return "two equal configurations give unequal methods: make scorer and allocator frozen dataclasses"
    try:
        first_described, second_described = describe(first), describe(second)
    except UserError as error:
        return str(error)
    if first_described != second_described or " object at 0x" in str(first_described):
        return "its parameters have no stable text, so that results would not be resumed: use plain values as fields"
    return ""


def dtype(subject: Subject) -> str:
    """Check that a model in bfloat16 works and keeps exactly the budget."""
    ids = prompt(subject.budget + BEYOND, seed=5)
    kept, _ = _answer(half(), subject.method(half()), ids, subject.budget)
    total, wanted, _ = _totals(kept, subject.budget)
    if total != wanted:
        return f"in bfloat16, the number of kept tokens is not budget={subject.budget}"
    with attached(half()):
        generate(half(), ids, [Setting(subject.method(half()), subject.budget)], NEW)
    return ""


CHECKS: dict[str, Callable[[Subject], str]] = {
    "scores": scores,
    "budget exact": budget_exact,
    "window kept": window_kept,
    "positions sorted, unique, in range": positions,
    "no leak between prompts": no_leak,
    "writes to nothing": writes_nothing,
    "alone = beside other settings": beside_others,
    "layer index": layer_index,
    "GQA grouping": gqa_grouping,
    "shared = in-layer eviction": shared_equals_in_layer,
    "prompts that fit are kept whole": prompts_that_fit,
    "one-token prompts": one_token_prompt,
    "determinism": determinism,
    "equal configurations": equal_configurations,
    "dtype": dtype,
}
"""All checks by the names shown in reports."""


def _models_and_budgets(subject: Subject) -> Iterator[tuple[PreTrainedModel, str, int]]:
    """Yield every model at every budget, with a phrase that names the model in a sentence."""
    for model, sort in ((dense(), ""), (hybrid(), ", in a model with sliding windows")):
        for budget in subject.budgets(subject.method(model)):
            yield model, sort, budget


def _cases(subject: Subject) -> Iterator[tuple[str, int, Kept]]:
    """Yield every model at every budget, for a prompt that exceeds the budget.

    Each case is its description, the budget and the kept positions.
    """
    for model, sort, budget in _models_and_budgets(subject):
        kept, _ = _answer(model, subject.method(model), prompt(budget + BEYOND, seed=0), budget)
        yield f"budget={budget}: of a prompt of {budget + BEYOND} tokens{sort}", budget, kept


def _positions(kept: selection.Kept) -> Kept:
    return [[head.tolist() for head in layer] for layer in kept]


def _totals(kept: Kept, budget: int) -> tuple[int, int, int]:
    """Return the number of tokens kept, the number that `budget` allows, and the number of rows."""
    rows = [head for layer in kept for head in layer]
    return sum(map(len, rows)), budget * len(rows), len(rows)


def _answer(
    model: PreTrainedModel, method: EvictionMethod, ids: Tensor, budget: int
) -> tuple[Kept, list[list[list[float]]]]:
    """Return the kept positions, and the scores of every layer."""
    setting = Setting(method, budget)
    with attached(model):
        whole = prefill(model, ids, setting.window, scorers=[method.scorer])
        kept = whole.kept(setting)
        scores = [score(method.scorer, layer).scores.tolist() for layer in whole.layers]
    return _positions(kept), scores


class Copies:
    """Tensors that must not change. The class compares them with copies to find any modification."""

    def __init__(self) -> None:
        self._copies: list[tuple[str, Tensor, Tensor]] = []

    def add(self, what: str, tensor: Tensor) -> None:
        self._copies.append((what, tensor, tensor.clone()))

    def changed(self) -> str:
        """Return the name of a changed tensor; "" if none changed."""
        for what, tensor, copy in self._copies:
            if not torch.allclose(tensor, copy, rtol=0, atol=0, equal_nan=True):
                return what
        return ""


def _kept_whole(subject: Subject, lengths: Sequence[int]) -> str:
    setting = Setting(subject.method(dense()), subject.budget)
    for length in lengths:
        ids = prompt(length, seed=6)
        with attached(dense()):
            (full,) = generate(dense(), ids, [FULL], NEW)
            for found in (*generate(dense(), ids, [setting], NEW), generate_in_layer(dense(), ids, setting, NEW)):
                if found != full:
                    return f"budget={subject.budget}: a prompt of {length} tokens fits, but its answer differs"
    return ""


def _layers(model: PreTrainedModel, subject: Subject) -> list[LayerPrefill]:
    """Return the evicting layers after the prefill of a prompt that exceeds the budget."""
    method, layers = subject.method(model), list[LayerPrefill]()
    ids = prompt(subject.budget + BEYOND, seed=7)
    # Unlike `prefill`, keep the hidden states of the layers.
    cache = EvictedCache(model.config, method.window, ids.numel(), layers.append, [method.scorer])
    with attached(model):
        forward_prompt(model, ids, cache, None)
    return layers


def _scored(method: EvictionMethod, layer: LayerPrefill) -> list[Tensor]:
    """Return the scores of a copy of the layer in float32, followed by the scores that compare heads, if any."""
    scored = method.scorer(seen_by(method, layer))
    return [scored.scores.float(), *([] if scored.contest is None else [scored.contest.float()])]


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(first, second, strict=True))


def _variants(layer: LayerPrefill, head: int) -> Iterator[tuple[str, LayerPrefill]]:
    """Yield the layer with other queries, keys or values of one KV head."""
    generator = torch.Generator().manual_seed(8)
    for name in ("queries", "keys", "values"):
        tensor = getattr(layer, name).clone()
        own = slice(head * GROUP, (head + 1) * GROUP) if name == "queries" else slice(head, head + 1)
        tensor[own] = torch.randn(tensor[own].shape, generator=generator) * tensor.std()
        yield name, replace(layer, **{name: tensor})
