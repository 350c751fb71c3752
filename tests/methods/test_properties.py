"""What must hold for every method of the table in `construction` and any prompt."""

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.setting import Setting
from compresskv.eviction import EvictionMethod, LayerPrefill, Observation, PromptShape
from compresskv.protocol import EvaluationProtocol
from compresskv.selection import running_capacities
from tests.support import tiny

from .construction import METHODS, context, kept, method, prompt, random_layers, seen_by

CORRECTED = EvaluationProtocol()
RELEASED = EvaluationProtocol(
    name="released",
    gqa_grouping="strided",
    streaming_tail="window",
    pyramid_schedule="first_prompt",
    pyramid_short_prompt="none",
    exact_budget=False,
    score_dtype="model",
)

Case = tuple[PromptShape, int, Observation, int, int]
"""A model and prompt, query heads a KV head, observation, budget, and a seed for the tensors."""

every_method = pytest.mark.parametrize("name", list(METHODS))
few = settings(max_examples=25, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    window = draw(st.integers(2, 5))
    shape = PromptShape(draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 60)), window)
    observation = Observation(window, draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from(["average", "max"])))
    return shape, draw(st.integers(1, 3)), observation, draw(st.integers(window + 1, 70)), draw(st.integers(0, 10**6))


def make(
    name: str, case: Case, protocol: EvaluationProtocol = CORRECTED
) -> tuple[EvictionMethod, list[LayerPrefill], int]:
    shape, group, observation, budget, seed = case
    where = context(shape, group, observation, protocol, first_prompt=1 + seed % 90)
    return method(name, where), random_layers(shape, group, seed), budget


@every_method
@pytest.mark.parametrize("protocol", [CORRECTED, RELEASED], ids=lambda p: p.name)
@given(case=cases(), other=st.integers(1, 60))
@few
def test_what_is_kept(name: str, protocol: EvaluationProtocol, case: Case, other: int) -> None:
    """Sorted positions with the window; prompts that fit; nothing of other prompts; and, exact, the whole budget."""
    chosen, layers, budget = make(name, case, protocol)
    shape, group, *_ = case
    found, everything = kept(chosen, layers, budget), [[list(range(shape.length))] * shape.kv_heads] * shape.layers
    assert [len(layer) for layer in found] == [shape.kv_heads] * shape.layers
    for head in chain(*found):
        assert head == sorted(set(head))
        assert head[-chosen.window :] == list(range(max(shape.length - chosen.window, 0), shape.length))
        assert head[0] >= 0
    for fitting in (shape.length, shape.length + 1, shape.length + 100):
        assert kept(chosen, layers, max(fitting, chosen.window + 1)) == everything
    kept(chosen, random_layers(PromptShape(shape.layers, shape.kv_heads, other, shape.window), group, 7), budget)
    assert kept(chosen, random_layers(shape, group, case[4]), budget) == found
    assert kept(make(name, case, protocol)[0], layers, budget) == found
    if protocol is RELEASED:
        return
    # A window as long as the prompt leaves nothing to evict.
    mean = shape.length if shape.length <= chosen.window else min(budget, shape.length)
    assert sum(map(len, chain(*found))) == shape.layers * shape.kv_heads * mean
    shape = replace(shape, window=chosen.window)
    if shape.length > max(budget, shape.window):  # asked after every layer or once at the end: no difference
        scores = [chosen.scorer(seen_by(chosen, layer)) for layer in layers]
        assert running_capacities(chosen, scores, shape, budget) == list(chosen.allocator(scores, shape, budget))


@every_method
@pytest.mark.parametrize("budget", [64, 250])
def test_budget_is_kept_in_a_model_of_32_layers(name: str, budget: int) -> None:
    shape = PromptShape(32, 8, 400, 8)
    chosen = method(name, context(shape))
    scores = [chosen.scorer(seen_by(chosen, layer)) for layer in random_layers(shape, 2, seed=budget)]
    capacities = running_capacities(chosen, scores, replace(shape, window=chosen.window), budget)
    total = sum(sum(c) if isinstance(c, tuple) else 8 * c for c in capacities)
    assert total == 32 * 8 * (budget - chosen.window)


@every_method
def test_equal_configurations_share_their_scores(name: str, monkeypatch) -> None:
    """Settings of one method at several budgets must not score a prompt twice."""
    shape = PromptShape(2, 2, 40, 2)
    first, second = method(name, context(shape)), method(name, context(shape))
    assert first == second
    assert hash(first) == hash(second)
    kind, scored = type(first.scorer), []
    call = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, layer: scored.append(layer.index) or call(self, layer))
    run = prompt([seen_by(first, layer) for layer in random_layers(shape, 2, 0)])
    run.score([Setting(one, 8) for one in (first, second)])
    assert all(run.kept(Setting(one, 9)) for one in (first, second))
    assert scored == [0, 1]


@every_method
@pytest.mark.parametrize("protocol", [CORRECTED, RELEASED], ids=["corrected", "released"])
def test_shared_equals_in_layer_token_for_token(name: str, protocol: EvaluationProtocol) -> None:
    model, ids = tiny.model("llama"), tiny.prompt(90, seed=7)
    where = context(PromptShape(4, 2, 90, 4), 3, Observation(window=4), protocol)
    setting, stopping = Setting(method(name, where), 36), Stopping(4)
    with attached(model):
        (shared,) = generate(model, ids, [setting], stopping)
        assert generate_in_layer(model, ids, setting, stopping) == shared
        assert generate_in_layer(model, ids, setting, stopping, chunk=31) == shared
    assert shared.realised_budget == 36 or protocol is RELEASED
