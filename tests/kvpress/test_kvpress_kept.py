"""What a press keeps here is what its own `compress` keeps, given the model's real attention modules."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.adakv import AdaKVAllocator
from baselines.kvpress.kvpress_adakv import KVPressAdaKVAllocator
from baselines.kvpress.kvpress_pyramidkv import exact
from baselines.uniform import UniformAllocator
from bench.kvpress import ENVIRONMENT
from bench.parity import parity
from bench.settings import default_model
from compresskv import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import PromptError
from compresskv.eviction import EvictionMethod, LayerScores, PromptShape, score
from compresskv.installed import generate_argument
from compresskv.methods import build
from evals.compose import job
from evals.conformance.checks import CHECKS, problem
from evals.conformance.subject import Subject, dense, half, prompt
from tests.support.kvpress_here import kvpress_or_skip
from tests.support.refusals import refused

kvpress = kvpress_or_skip()

LENGTH = 300

SMALL = {"expected_attention": ["n_sink=2"], "snapkv": ["window_size=16"], "pyramidkv": ["window_size=16"]}
WINDOWED = ["settings.window_size=16"]
BASE = {
    "adakv_snapkv": WINDOWED,
    "chunkkv": WINDOWED,
    "entropy_gated_chunkkv": WINDOWED,
    "chunk": ["chunk_length=100"],
    "block": ["block_size=32"],
}


def theirs(name, ratio):
    """The press of kvpress that method=kvpress/<name> is, with the parameters of `SMALL` and `BASE`."""
    k = kvpress
    snap, expected = k.SnapKVPress(ratio, window_size=16), k.ExpectedAttentionPress(ratio, use_vnorm=False)
    made = {
        "expected_attention": lambda: k.ExpectedAttentionPress(ratio, n_sink=2),
        "snapkv": lambda: snap,
        "criticalkv": lambda: k.CriticalKVPress(expected),
        "adakv_compactor": lambda: k.AdaKVPress(k.CompactorPress(ratio)),
        "adakv_snapkv": lambda: k.AdaKVPress(snap),
        "adakv": lambda: k.AdaKVPress(k.ExpectedAttentionPress(ratio, epsilon=0.01)),
        "critical_adakv": lambda: k.CriticalAdaKVPress(expected),
        "block": lambda: k.BlockPress(k.KeyDiffPress(ratio), block_size=32),
        "chunk": lambda: k.ChunkPress(k.ExpectedAttentionPress(ratio), chunk_length=100),
        "chunkkv": lambda: k.ChunkKVPress(snap),
        "entropy_gated_chunkkv": lambda: k.EntropyGatedChunkKVPress(snap),
        "pyramidkv": lambda: k.PyramidKVPress(ratio, window_size=16, beta=2),
    }
    kinds = {kind.casefold(): getattr(k, kind) for kind in k.__all__}
    return made[name]() if name in made else kinds[f"{name.replace('_', '')}press"](ratio)


EXACT = [
    *("cap", "compactor", "cur", "expected_attention", "keydiff", "knorm", "leverage_score", "non_causal_attn"),
    *("observed_attention", "random", "snapkv", "streaming_llm", "tova", "criticalkv", "adakv", "critical_adakv"),
    *("block", "entropy_gated_chunkkv", "adakv_compactor", "adakv_snapkv"),
]
"""Presses whose every budget is a number that kvpress keeps. LagKV's scores tie, so top-k may choose otherwise."""

SERVED = [*EXACT, "chunk", "chunkkv", "lagkv", "pyramidkv"]

ROUNDED = ["chunk", "chunkkv"]
"""Presses that keep whole chunks, or round in each: the budget here is filled."""


def configured(name, *settings):
    chosen = [f"{'+' if '.' in setting else ''}method.scorer.{setting}" for setting in settings]
    chosen += ["method.allocator.beta=2"] if name == "pyramidkv" else []
    return job(f"method=kvpress/{name}", *chosen).method


def method_of(name, *more):
    config = configured(name, *SMALL.get(name, BASE.get(name, [])), *more)
    return build(config, Subject(lambda context: None, 0).context(3))


def layers_of(model, ids, attention):
    """What the attention module of each layer gets and returns in transformers' own attention."""
    seen = []

    def keep(module, args, kwargs, output):
        seen.append((module, kwargs["hidden_states"], kwargs["position_embeddings"], output[1]))

    own = model.config._attn_implementation
    model.set_attn_implementation(attention)
    hooks = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        cache = model(ids[None], use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation(own)
    return [(*one, cache.layers[i].keys, cache.layers[i].values) for i, one in enumerate(seen)]


def positions_kept(press, model, ids, observed):
    """Kept positions of each layer and KV head, by `compress` of a press of kvpress."""
    kept = []
    layers = layers_of(model, ids, "eager" if observed else "sdpa")
    for index, (module, states, angles, attention, keys, values) in enumerate(layers):
        vars(module)["rotary_emb"] = model.model.rotary_emb
        try:
            torch.manual_seed(index)
            given = attention if observed else None
            with torch.no_grad():
                after, _ = press.compress(module, states, keys, values, given, {"position_embeddings": angles})
            masked = vars(module).pop("masked_key_indices", None)
        finally:
            del vars(module)["rotary_emb"]
        if masked is not None:
            there = torch.ones(keys.shape[1:3], dtype=torch.bool)
            there[masked[1], masked[2]] = False
            kept.append([head.nonzero().flatten().tolist() for head in there])
        else:
            same = (after[0][:, :, None] == keys[0][:, None]).all(-1)
            kept.append([sorted(head.nonzero()[:, 1].tolist()) for head in same])
    return kept


def ours_kept(method, model, ids, budget):
    setting = Setting(method, budget)
    with attached(model):
        kept = prefill(model, ids, setting.window, scorers=[method.scorer]).kept(setting)
    return [[head.tolist() for head in layer] for layer in kept]


@pytest.mark.parametrize("name", EXACT)
def test_a_press_keeps_what_its_compress_keeps(name):
    model, ids, kept = dense(), prompt(LENGTH, seed=1), 75
    press = theirs(name, 1 - (kept + 1e-6) / LENGTH)
    expected = positions_kept(press, model, ids, observed=name == "observed_attention")
    # In the first layer, equal tokens have equal keys before RoPE, so these scores tie, and top-k chooses otherwise.
    first = 1 if name in ("knorm", "leverage_score") else 0
    assert ours_kept(method_of(name), model, ids, kept)[first:] == expected[first:]


@pytest.mark.parametrize("name", ROUNDED)
def test_whole_chunks_are_kept_and_the_budget_is_filled(name):
    model, ids, budget = dense(), prompt(LENGTH, seed=1), 155
    ours = ours_kept(method_of(name), model, ids, budget)
    expected = positions_kept(theirs(name, 1 - (budget + 1e-6) / LENGTH), model, ids, observed=False)
    for layer, whole in zip(ours, expected, strict=True):
        for head, theirs_kept in zip(layer, whole, strict=True):
            assert set(theirs_kept) <= set(head)
            assert len(theirs_kept) <= len(head) == budget


def test_pyramidkv_differs_from_its_press_by_the_rounding_of_layers():
    model, ids, budget = dense(), prompt(LENGTH, seed=1), 101
    ours = ours_kept(method_of("pyramidkv"), model, ids, budget)
    expected = positions_kept(theirs("pyramidkv", 1 - (budget + 1e-6) / LENGTH), model, ids, observed=False)
    assert sum(len(layer[0]) for layer in ours) == 3 * budget
    assert len(ours[0][0]) > budget > len(ours[2][0])
    for layer, whole in zip(ours, expected, strict=True):
        for head, theirs_kept in zip(layer, whole, strict=True):
            assert len(set(head) ^ set(theirs_kept)) <= 1


CHUNKED = {"budget exact", "window kept", "positions sorted, unique, in range"} | {
    "alone = beside other settings",
    "shared = in-layer eviction",
}
"""Checks that need a budget of one token, which holds no chunk."""

OF_EACH_PRESS = ["scores", "one-token prompts", "equal configurations", "dtype"]
"""Checks of what a press computes; what the others check is the same code for presses of one kind."""

KINDS = ["observed_attention", "random", "critical_adakv", "block", "pyramidkv"]


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        *((name, OF_EACH_PRESS) for name in SERVED if name not in KINDS),
        *((name, list(CHECKS)) for name in KINDS),
        *(pytest.param(name, list(CHECKS), marks=pytest.mark.slow) for name in SERVED if name not in KINDS),
    ],
)
def test_presses_conform(name, checks):
    config = configured(name, *(WINDOWED if BASE.get(name) is WINDOWED else ()))
    subject = Subject(lambda context: build(config, context), 96)
    failing = CHUNKED if name in ("chunkkv", "entropy_gated_chunkkv") else set()
    assert {check: said for check in checks if check not in failing and (said := problem(check, subject))} == {}


@pytest.mark.parametrize("name", ["expected_attention", "adakv", "chunkkv", "critical_adakv", "adakv_compactor"])
def test_all_paths_generate_the_same(name):
    model, ids = dense(), prompt(LENGTH, seed=2)
    setting = Setting(method_of(name), 120)
    with attached(model):
        (shared,) = generate(model, ids, [setting], Stopping(6))
        assert generate_in_layer(model, ids, setting, Stopping(6)) == shared
    with compressed(model, setting.method, budget=120) as cache:
        argument = {generate_argument(): cache}
        out = model.generate(ids[None], max_new_tokens=6, do_sample=False, **argument)
    assert out[0, LENGTH:].tolist() == shared.tokens


def test_hidden_states_reach_presses_alone_and_are_freed_with_the_layer():
    seen = []

    class Watching:
        window = 1

        def __call__(self, layer):
            seen.append(layer.hidden)
            return LayerScores(layer.keys[:, :-1].norm(dim=-1))

    model, press, own = dense(), method_of("expected_attention").scorer, Watching()
    with attached(model):
        whole = prefill(model, prompt(LENGTH, seed=1), 1, scorers=[press, own])
        assert [layer.hidden for layer in whole.layers] == [None] * 3
        assert all(isinstance(layer.scored[press], LayerScores) for layer in whole.layers)
        assert not [module for module in model.modules() if module._forward_pre_hooks]
        for layer in whole.layers:
            score(own, layer)
    assert seen == [None] * 3


def test_a_press_that_fails_stops_no_other():
    failing = Setting(method_of("snapkv", "kernel_size=4"), 60)  # kvpress's pooling needs an odd kernel
    fine = Setting(method_of("expected_attention"), 60)
    with attached(dense()):
        scorers = [setting.method.scorer for setting in (failing, fine)]
        whole = prefill(dense(), prompt(LENGTH, seed=1), 16, scorers=scorers)
    assert whole.kept(fine)
    with pytest.raises(PromptError):
        whole.kept(failing)


def test_chunks_are_refused_by_the_engine_too():
    model, ids, method = dense(), prompt(LENGTH, seed=1), method_of("expected_attention")
    setting = Setting(method, 60)
    with attached(model):
        assert prefill(model, ids, 1, LENGTH, scorers=[method.scorer]).kept(setting)
        whole = prefill(model, ids, 1, 100, scorers=[method.scorer])
        with refused("prefill_chunk"):
            whole.kept(setting)
        with refused("prefill_chunk"):
            generate_in_layer(model, ids, setting, Stopping(2), 100)


@pytest.mark.parametrize(
    ("name", "allocator", "budget", "field"),
    [
        ("chunkkv", None, 15, "budget"),  # below a chunk
        # Their heads share in their own way.
        ("critical_adakv", UniformAllocator(), 60, "method/allocator"),
        ("adakv_compactor", UniformAllocator(), 60, "method/allocator"),
        ("critical_adakv", KVPressAdaKVAllocator(0.5, "0.5.5"), 60, "method/allocator"),
        ("adakv_compactor", KVPressAdaKVAllocator(0.5, "0.5.5"), 60, "method/allocator"),
        ("compactor", AdaKVAllocator(), 60, "method.scorer.blending"),
    ],
)
def test_what_does_not_go_with_a_press_is_refused(name, allocator, budget, field):
    method = method_of(name)
    with refused(field):
        ours_kept(replace(method, allocator=allocator or method.allocator), dense(), prompt(LENGTH, seed=1), budget)


def test_compactor_without_a_blending_compares_heads():
    method = replace(method_of("compactor", "blending=0"), allocator=AdaKVAllocator())
    assert ours_kept(method, dense(), prompt(LENGTH, seed=1), 60)


@pytest.mark.parametrize("name", ["critical_adakv", "adakv", "adakv_compactor"])
def test_heads_share_the_budget_in_half_precision_too(name):
    """Scores in bfloat16 tie, and kvpress's top-k chooses among them."""
    kept = ours_kept(method_of(name), half(), prompt(LENGTH, seed=1), 60)
    assert [sum(map(len, layer)) for layer in kept] == [180] * 3


def test_a_head_may_keep_nothing():
    """Without a window, an allocator may leave a head, or a layer, without any prompt token."""

    class Uneven:
        def __call__(self, scores, shape, budget):
            return [(0, budget, 2 * budget), 0, budget][: len(scores)]

    model, ids = dense(), prompt(LENGTH, seed=1)
    setting = Setting(EvictionMethod(method_of("keydiff").scorer, Uneven()), 20)
    with attached(model):
        (shared,) = generate(model, ids, [setting], Stopping(4))
        assert generate_in_layer(model, ids, setting, Stopping(4)) == shared
        assert len(generate(model, ids, [setting, FULL], Stopping(4))) == 2


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.data())
@settings(max_examples=60, deadline=None)
def test_layer_budgets_sum_to_the_total(rounded, data):
    total = data.draw(st.integers(0, 40 * len(rounded)))
    made = exact(rounded, total, 40)
    assert sum(made) == total
    assert all(0 <= budget <= 40 for budget in made)
    assert sum(made) != sum(rounded) or made == rounded


def test_adakv_shares_sum_to_the_budget_of_the_layer():
    generator = torch.Generator().manual_seed(0)
    scores = [LayerScores(torch.rand(3, 200, generator=generator)) for _ in range(2)]
    shares = KVPressAdaKVAllocator(0.2, "0.5.5")(scores, PromptShape(2, 3, 208, 8), 50)
    assert [sum(layer) for layer in shares] == [3 * 42] * 2
    assert min(map(min, shares)) >= 0


NAMES = ["expected_attention", "keydiff", "knorm", "snapkv", "tova", "cur", "adakv", "streaming_llm"]


@pytest.mark.slow
def test_presses_keep_what_kvpress_keeps():
    if not (ENVIRONMENT / ".ready").exists():
        pytest.skip("kvpress has no environment: run `make .venv-kvpress/.ready`")
    model = default_model("model.dtype=float32")
    for case, agreement in parity(model, NAMES, [1000]).items():
        assert agreement.ours == agreement.theirs, case
        assert agreement.same >= 0.98 * agreement.sets, (case, str(agreement))
        assert agreement.both >= 0.999 * agreement.tokens, (case, str(agreement))
        assert agreement.equal == agreement.answers, (case, str(agreement))
