"""Errors of your own scorer or allocator name it, not the model."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from baselines.uniform import UniformAllocator
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.setting import Setting
from compresskv.errors import NonFiniteError, PromptError, UserError
from compresskv.eviction import EvictionMethod, LayerScores
from tests.support import tiny
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

LENGTH, BUDGET = 40, 20


@dataclass(frozen=True)
class Returning:
    """A scorer that returns something made of the norms of all keys, in one layer."""

    made: Callable[[torch.Tensor], Any]
    window: int = 4

    def __call__(self, layer):
        norms = layer.keys.norm(dim=-1)
        return self.made(norms) if layer.index == 1 else LayerScores(norms[:, :-4])


@dataclass(frozen=True)
class Answering:
    """An allocator that gives `answer`, or that of each layer."""

    answer: Any

    def __call__(self, scores, shape, budget):
        return self.answer(len(scores), shape.kv_heads) if callable(self.answer) else self.answer


def run(model, method, path):
    setting, ids = Setting(method, BUDGET), tiny.prompt(LENGTH)
    if path == "compressed":
        with compressed(model, method, BUDGET) as cache:
            model(ids[None], past_key_values=cache)
        return [[len(head) for head in layer] for layer in cache.kept]
    with attached(model):
        if path == "shared":
            return generate(model, ids, [setting], Stopping(1))[0].kept
        return generate_in_layer(model, ids, setting, Stopping(1)).kept


@pytest.fixture(params=["shared", "in layer", "compressed"])
def path(request):
    return request.param


WRONG = {
    "nothing": lambda norms: None,
    "a tensor": lambda norms: norms[:, :-4],
    "one column short": lambda norms: LayerScores(norms[:, :-5]),
    "the whole prompt": LayerScores,
    "one head": lambda norms: LayerScores(norms[:1, :-4]),
    "three axes": lambda norms: LayerScores(norms[:, :-4, None]),
    "nan": lambda norms: LayerScores(norms[:, :-4] * math.nan),
}


@pytest.mark.parametrize("what", WRONG)
def test_scores_that_are_not_of_the_past_name_the_scorer(path, what):
    with refused("method.scorer", NonFiniteError if what == "nan" else UserError, value="Returning") as caught:
        run(tiny.model("llama"), EvictionMethod(Returning(WRONG[what]), UniformAllocator()), path)
    assert what == "nan" or not isinstance(caught.value, PromptError)  # other prompts would fail, too


def test_nan_of_the_attention_names_the_dtype(path):
    """Queries and keys are finite, and their products are not."""
    model = copy.deepcopy(tiny.model("llama"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                value *= 1e20
    with refused("model.dtype", NonFiniteError):
        run(model, SNAPKV, path)


BROKEN = {
    "infinite": lambda layers, heads: [math.inf] * layers,
    "fraction": lambda layers, heads: [4.5] * layers,
    "negative": lambda layers, heads: [-1] * layers,
    "a head that is nan": lambda layers, heads: [(4, math.nan)] * layers,
    "too few heads": lambda layers, heads: [(4,) * (heads - 1)] * layers,
    "too many heads": lambda layers, heads: [(4,) * (heads + 1)] * layers,
    "text": lambda layers, heads: ["4"] * layers,
    "none of a layer": lambda layers, heads: [None] * layers,
    "nothing": None,
    "too few layers": lambda layers, heads: [4] * (layers - 1),
    "too many layers": lambda layers, heads: [4] * 9,
    "a tensor of fractions": lambda layers, heads: torch.full((layers,), 4.0),
    "a tensor of nan": lambda layers, heads: torch.full((layers, heads), math.nan),
}


@pytest.mark.parametrize("answer", BROKEN)
def test_capacities_that_cannot_be_name_the_allocator(path, answer):
    with refused("method.allocator", value="Answering"):
        run(tiny.model("llama"), EvictionMethod(SNAPKV.scorer, Answering(BROKEN[answer])), path)


@pytest.mark.parametrize("number", [4, np.int64(4), torch.tensor(4)])
def test_whole_numbers_of_any_type_are_capacities(path, number):
    for answer in (lambda layers, heads: [number] * layers, lambda layers, heads: [[number] * heads] * layers):
        kept = run(tiny.model("llama"), EvictionMethod(SNAPKV.scorer, Answering(answer)), path)
        assert kept == [[4 + SNAPKV.window] * 2] * 4
