"""Distinct prompts as one batch: each row decodes as it does alone, token for token, under every method and layout."""

import copy
from functools import cache, reduce
from itertools import chain

import pytest
import torch

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.forward import forward_tokens
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.joined import Allocation, WaitingCache, join, sliding_bytes
from compresskv.engine.live_bytes import LiveBytesMode
from compresskv.engine.prefill import forward_prompt
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import PromptShape
from compresskv.observation import ObservationConfig
from compresskv.schedule import EvictionSchedule
from tests.methods.construction import METHODS, context, method
from tests.support import tiny
from tests.support.logical_devices import logical_devices, spread
from tests.support.methods_in_use import RAGGED, SNAPKV
from tests.support.refusals import refused

NEW = 6
PROMPTS = tuple(tiny.prompt(length, seed=length) for length in (90, 71, 120, 47))


@torch.no_grad()
def waiting(model, setting, prompts, *schedule):
    """The prompts, compressed, and the logits of their next tokens."""
    caches = [WaitingCache(model.config, setting, ids.numel(), *schedule) for ids in prompts]
    logits = [forward_prompt(model, ids, cache, None) for ids, cache in zip(prompts, caches, strict=True)]
    return caches, torch.stack(logits)


def allocation(caches, room):
    """What the prompts will allocate as one batch, counted one by one."""
    return reduce(Allocation.with_one, caches, Allocation(room))


@torch.no_grad()
def decoded(model, prompts, cache, logits, new):
    """`new` tokens of each prompt, decoded as one batch."""
    tokens = [logits.argmax(-1)]
    positions = torch.tensor([ids.numel() for ids in prompts]).to(logits.device)
    for step in range(new - 1):
        tokens.append(forward_tokens(model, tokens[-1], cache, positions + step).argmax(-1))
    return torch.stack(tokens, 1).tolist()


def together(model, setting, prompts, room=NEW):
    caches, logits = waiting(model, setting, prompts)
    expected = allocation(caches, room).evicting, sliding_bytes(caches, NEW - 1)
    cache = join(caches, room)
    assert caches == []
    tokens = decoded(model, prompts, cache, logits, NEW)
    if room == NEW:
        assert (cache.nbytes, cache.sliding_bytes) == expected
    return tokens


@cache
def alone(model, setting, prompts):
    return [generate_in_layer(model, ids, setting, Stopping(NEW)).tokens for ids in prompts]


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    model = tiny.model("llama")
    where = context(PromptShape(4, 2, 90, 4), group=3, observation=ObservationConfig(window=4, kernel=3))
    setting = Setting(method(name, where), 32)
    with attached(model):
        assert together(model, setting, PROMPTS) == alone(model, setting, PROMPTS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "protect", "layout"),
    [
        ("snapkv", "none", "varlen"),
        ("h2o", "prompt", "flash-attn"),
        ("streaming_llm", "none", "sdpa"),
        ("adakv", "prompt", "masked sdpa"),
        ("full", "none", "masked sdpa"),
    ],
    indirect=["layout"],
)
def test_eviction_while_decoding(name, protect, layout):
    """Prompts of other lengths evict as they do alone, in the memory of their budget and the interval."""
    model, schedule, new = tiny.model("llama"), EvictionSchedule("prompt+decode", 5, protect), 18
    where = context(PromptShape(4, 2, 90, 4), group=3, observation=ObservationConfig(window=4, kernel=3))
    setting = FULL if name == "full" else Setting(method(name, where), 60)  # a prompt of 47 tokens is kept whole
    with attached(model, layout):
        caches, logits = waiting(model, setting, PROMPTS, schedule)
        needed = allocation(caches, new)
        cache = join(caches, needed.room)
        tokens = decoded(model, PROMPTS, cache, logits, new)
        single = [generate_in_layer(model, ids, setting, Stopping(new), schedule=schedule) for ids in PROMPTS]
    assert tokens == [each.tokens for each in single]
    assert cache.nbytes == needed.evicting
    assert needed.room == (new if name == "full" else 60 - 47 + 5)
    if name != "full":
        assert cache.eviction.evicted == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("layout", "family", "setting"),
    [
        ("sdpa", "qwen2-hybrid", Setting(RAGGED, 40)),
        ("masked sdpa", "llama", Setting(RAGGED, 40)),
        ("masked sdpa", "qwen2-hybrid", FULL),
        ("varlen", "qwen2-hybrid", Setting(RAGGED, 40)),
        ("varlen", "llama", FULL),
        ("flash-attn", "llama", Setting(RAGGED, 40)),
        ("flash-attn", "qwen2-hybrid", FULL),
        ("sdpa", "mistral-sliding", FULL),  # no layer evicts
    ],
    indirect=["layout"],
)
def test_every_layout(layout, family, setting):
    """Heads of different capacities, layers with a sliding window, and new tokens past the room."""
    model = tiny.model(family)
    with attached(model):
        expected = alone(model, setting, PROMPTS)
    with attached(model, layout):
        assert together(model, setting, PROMPTS, room=2 if setting.budget else NEW) == expected


def test_layers_on_two_gpus(ampere):
    model, setting = tiny.model("llama"), Setting(RAGGED, 40)
    with attached(model):
        expected = alone(model, setting, PROMPTS)
    with logical_devices():
        moved = spread(copy.deepcopy(model), ["cuda:0", "cuda:1"] * 2, "cuda:1")
        with attached(moved):
            assert together(moved, setting, [ids.to(moved.device) for ids in PROMPTS]) == expected


def test_prompts_within_a_sliding_window_must_be_of_one_length():
    model, setting = tiny.model("qwen2-hybrid"), Setting(SNAPKV, 12)
    short = tuple(tiny.prompt(16, seed=seed) for seed in (1, 2))
    with attached(model):
        assert together(model, setting, short) == alone(model, setting, short)
        caches, _ = waiting(model, setting, [short[0], PROMPTS[0]])
        with refused("prompts"):
            join(caches, NEW)


def test_no_more_than_a_layer_is_held_twice():
    model, setting = tiny.model("llama"), Setting(RAGGED, 40)
    prompts = [tiny.prompt(300 - place, seed=place) for place in range(6)]
    with attached(model):
        caches, _ = waiting(model, setting, prompts)
        pool = allocation(caches, NEW).evicting
        held = sum(cache.kept_bytes([[len(head) for head in layer] for layer in cache.kept]) for cache in caches)
        with LiveBytesMode() as mode:
            for source in chain.from_iterable(cache.sources for cache in caches):
                mode.live.add(source.keys)
                mode.live.add(source.values)
            del source
            assert held <= mode.live.now() <= pool
            join(caches, NEW)
    assert mode.live.peak <= 1.05 * (pool + pool / 4)
