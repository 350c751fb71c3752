"""Decode steps that are recorded once and replayed: a recorder for the CPU in the place of CUDA graphs."""

from types import SimpleNamespace

import pytest
import torch

from baselines.oracle import OracleScorer
from baselines.uniform import UniformAllocator
from compresskv.engine import graph
from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import MaskedSDPA, Varlen
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.generation import generate
from compresskv.engine.graph import graphs
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import Setting
from compresskv.eviction import EvictionMethod
from compresskv.schedule import EvictionSchedule
from tests.support import recorded, tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, settings_for
from tests.support.refusals import refused

LENGTH = 90


@pytest.fixture
def replays(monkeypatch):
    """Counts recordings and replays."""
    seen = SimpleNamespace(recorded=0, replayed=0)

    def captured(step, device):
        out, replay = recorded.recorded(step)
        seen.recorded += 1

        def again():
            seen.replayed += 1
            replay()

        return out, again

    monkeypatch.setattr(graph, "captured", captured)
    monkeypatch.setattr(graph, "on_gpu", lambda model: True)
    return seen


@pytest.fixture(params=[MaskedSDPA, lambda: Varlen(recorded.varlen_attn)], ids=["masked sdpa", "varlen"])
def layout(request):
    name = register("compresskv_graph", request.param())
    yield name
    forget(name)


def decoded(model, backend, settings, stopping, replay, room=None):
    with attached(model, backend), graphs(model, replay):
        prompt = prefill(model, tiny.prompt(LENGTH), 4)
        cache = decode_cache(prompt, [prompt.kept(setting) for setting in settings], room or stopping.max_new_tokens)
        tokens = decode(model, cache, prompt.logits, LENGTH, len(settings), stopping)
        return tokens, cache


def test_thirty_rows(replays, layout):
    model = tiny.model("qwen3")
    settings = [Setting(method, budget) for method in (SNAPKV, RAGGED, STREAMING) for budget in range(20, 60, 4)]
    expected, eager = decoded(model, layout, settings, Stopping(24), replay=False)
    assert replays.recorded == 0
    tokens, cache = decoded(model, layout, settings, Stopping(24), replay=True)
    assert tokens == expected
    assert (replays.recorded, replays.replayed) == (1, 23 - graph.EAGER)
    assert cache.get_seq_length() == eager.get_seq_length()
    for row in range(len(settings)):
        for ours, theirs in zip(cache.evicting, eager.evicting, strict=True):
            assert torch.equal(ours.rows.held(row)[0], theirs.rows.held(row)[0])


@pytest.mark.parametrize("room", [None, 7])
def test_rows_leave_and_storage_grows(replays, layout, room):
    model = tiny.model("llama")
    settings = settings_for(4)
    free, _ = decoded(model, layout, settings, Stopping(30), replay=False)
    stop = Stopping(30, frozenset(row[place] for place, row in enumerate(free, 4)))
    expected, _ = decoded(model, layout, settings, stop, replay=False)
    assert len({len(row) for row in expected}) > 3
    tokens, _ = decoded(model, layout, settings, stop, replay=True, room=room)
    assert tokens == expected
    assert replays.recorded > 1


def test_a_row_that_stopped_may_become_broken(replays, layout, monkeypatch):
    """Its logits are computed until it leaves, but they are nobody's answer."""
    model = tiny.model("llama")
    settings = [Setting(SNAPKV, budget) for budget in range(20, 60, 5)]
    free, _ = decoded(model, layout, settings, Stopping(16), replay=False)
    stop = Stopping(16, frozenset([free[0][3]]))
    expected, _ = decoded(model, layout, settings, stop, replay=False)
    forward = graph.Steps.__call__
    calls = []

    def broken(self, tokens, position):
        logits = forward(self, tokens, position)
        calls.append(tokens)
        first_stopped = len(calls) >= 4 and len(tokens) == len(settings)
        return logits.index_fill(0, torch.tensor([0]), float("nan")) if first_stopped else logits

    monkeypatch.setattr(graph.Steps, "__call__", broken)
    tokens, _ = decoded(model, layout, settings, stop, replay=True)
    assert tokens == expected


@pytest.mark.parametrize("why", ["sliding", "rope", "eviction", "off"])
def test_what_changes_from_step_to_step_stays_eager(replays, layout, why, monkeypatch):
    model = tiny.model("qwen2-hybrid" if why == "sliding" else "llama")
    if why == "rope":
        monkeypatch.setattr(graph, "depends_on_length", lambda model: True)
    schedule = EvictionSchedule("prompt+decode", 4) if why == "eviction" else EvictionSchedule()
    with attached(model, layout), graphs(model, why != "off"):
        generate(model, tiny.prompt(LENGTH), [Setting(SNAPKV, 24)] * 2, Stopping(8), schedule=schedule)
    assert replays.recorded == 0


def test_the_queries_of_an_answer_are_all_seen(replays, layout):
    model, oracle = tiny.model("llama"), Setting(EvictionMethod(OracleScorer(4), UniformAllocator()), 24)
    found = []
    for replay in (True, False):
        with attached(model, layout), graphs(model, replay):
            (made,) = generate(model, tiny.prompt(LENGTH), [oracle], Stopping(12))
        found.append((made.tokens, [[head.tolist() for head in layer] for layer in made.positions]))
    assert replays.replayed > 0  # of the evicted cache, which nothing watches
    assert found[0] == found[1]


def test_a_step_that_cannot_be_recorded_is_refused(replays, layout, monkeypatch):
    def captured(step, device):
        step()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "captured", captured)
    with refused("engine.graph", value="auto"):
        decoded(tiny.model("llama"), layout, [Setting(SNAPKV, 24)] * 2, Stopping(8), replay=True)
