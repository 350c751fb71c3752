"""Build layers with exactly known window attention, and compute which positions a method keeps of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from baselines.streaming_llm import StreamingLLMScorer
from compresskv.checking import frozen
from compresskv.context import Context
from compresskv.engine.prefill import Prefill
from compresskv.engine.setting import Setting
from compresskv.eviction import (
    Allocator,
    Capacity,
    EvictionMethod,
    LayerPrefill,
    LayerScores,
    PromptShape,
)
from compresskv.folders import CONF
from compresskv.methods import MethodConfig, Part, build, named_method
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from compresskv.selection import Kept, running_capacities
from evals.conformance import subject
from evals.conformance.subject import seen_by

FIRST = [
    [[7, 2, 1, 1, 1, 1, 7, 1], [7, 1, 1, 1, 1, 1, 3, 5]],
    [[2, 1, 2, 9, 2, 1, 3, 1], [1, 1, 3, 8, 2, 1, 2, 2]],
    [[2, 10, 2, 1, 1, 1, 3, 1], [1, 9, 2, 2, 1, 1, 2, 2]],
    [[1, 1, 1, 2, 6, 5, 4, 1], [1, 1, 1, 1, 5, 7, 2, 2]],
]
"""20 times the attention of four query heads, [head][window row][token]. The first row's last token is masked."""

SECOND = [
    [[3, 3, 3, 3, 3, 3, 2, 1], [3, 3, 3, 3, 2, 2, 2, 2]],
    [[4, 2, 4, 2, 4, 2, 2, 1], [2, 4, 2, 4, 2, 2, 2, 2]],
    [[1, 5, 5, 5, 1, 1, 2, 1], [3, 3, 3, 3, 2, 2, 2, 2]],
    [[2, 2, 2, 2, 5, 5, 2, 1], [4, 4, 2, 2, 2, 2, 2, 2]],
]
"""The second layer of the CAKE examples."""

WINDOW, LENGTH = 2, 8


def attending(weights: Sequence[Sequence[Sequence[float]]], kv_heads: int = 2, index: int = 0) -> LayerPrefill:
    """Make a layer whose window attention is proportional to `weights` [query head][window row][token].

    Keys are unit vectors, so that coordinate j of a query, times the scaling, is its logit for token j.
    """
    tokens = len(weights[0][0])
    keys = torch.eye(tokens).expand(kv_heads, -1, -1)
    queries = torch.tensor(weights, dtype=torch.float64).log().mul(math.sqrt(tokens)).float()
    return LayerPrefill(index, queries, keys, keys, scaling=1 / math.sqrt(tokens))


def nearly_equal_logits() -> LayerPrefill:
    """Make a layer with logits 1 for token 0, 1 + 2⁻¹⁰ (1 in bfloat16) for token 1, and 0 for the others."""
    keys = torch.zeros(1, 6, 2, dtype=torch.bfloat16)
    keys[0, :2, 0] = 1
    keys[0, 1, 1] = 2.0**-10
    return LayerPrefill(0, torch.ones(1, 2, 2, dtype=torch.bfloat16), keys, keys, scaling=1.0)


def random_layers(shape: PromptShape, group: int, seed: int, rows: int | None = None) -> list[LayerPrefill]:
    """Make layers with normally distributed queries, keys and values, and `rows` query rows (default: the window)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    heads, rows = shape.kv_heads, min(rows or shape.window, shape.length)
    return [
        LayerPrefill(
            index,
            normal(heads * group, rows, 4) * 2,
            normal(heads, shape.length, 4),
            normal(heads, shape.length, 4),
            scaling=0.5,
        )
        for index in range(shape.layers)
    ]


def prompt(layers: list[LayerPrefill]) -> Prefill:
    """Make a prefill from layers, without a model. Its cache provides only the layers."""
    cache = SimpleNamespace(evicting=layers, sliding={})
    return Prefill(layers[0].length, layers, torch.zeros(1), cache, torch.zeros(layers[0].length, dtype=torch.int64))  # type: ignore[arg-type]


def kept(method: EvictionMethod, layers: list[LayerPrefill], budget: int) -> list[list[list[int]]]:
    """Return the prompt positions that `method` keeps: [layer][KV head]."""
    return positions(prompt([seen_by(method, layer) for layer in layers]).kept(Setting(method, budget)))


def past_kept(method: EvictionMethod, layers: list[LayerPrefill], budget: int) -> list[list[list[int]]]:
    """Return the same as `kept`, without the window."""
    past = layers[0].length - method.window
    return [[[p for p in head if p < past] for head in layer] for layer in kept(method, layers, budget)]


def positions(found: Kept) -> list[list[list[int]]]:
    return [[head.tolist() for head in layer] for layer in found]


def blank(shape: PromptShape) -> list[LayerScores]:
    """Return zero scores for every layer, for allocators that only count the layers."""
    return [LayerScores(torch.zeros(shape.kv_heads, shape.past))] * shape.layers


def allocated(allocator: Allocator, scores: Sequence[LayerScores], shape: PromptShape, budget: int) -> list[Capacity]:
    """Return the past tokens that each layer keeps if the allocator runs after every layer.

    The scores may come from any scorer.
    """
    return running_capacities(EvictionMethod(StreamingLLMScorer(), allocator), scores, shape, budget)


calibration = partial(subject.calibration, model="tiny")
"""Function that makes a calibration with random scores of every kind."""


def context(
    shape: PromptShape,
    group: int = 2,
    observation: ObservationConfig | None = None,
    protocol: EvaluationProtocol | None = None,
    first_prompt: int | None = None,
    model: str = "tiny",
) -> Context:
    """Return the context to build a method from, for a model and prompt of this `shape`."""
    observation = observation or ObservationConfig(window=shape.window, kernel=1)
    q_heads = shape.kv_heads * group
    return Context(
        model=model,
        layers=shape.layers,
        q_heads=q_heads,
        kv_heads=shape.kv_heads,
        observation=observation,
        protocol=protocol or EvaluationProtocol(),
        calibration=calibration(shape.layers, q_heads, observation),
        first_prompt=first_prompt,
    )


METHODS = {
    config.name: config
    for config in (named_method(path.stem) for path in sorted((CONF / "method").glob("*.yaml")))
    if not config.keeps_everything
}
"""Every method of conf/method that evicts. All property tests run over this table."""


def changed(part: Part, parameters: Mapping[str, object]) -> Part:
    """Return `part` with new values for those of `parameters` that it has."""
    ours = {name: value for name, value in parameters.items() if name in part.parameters}
    return replace(part, parameters=frozen({**part.parameters, **ours}))


def method(name: str, where: Context, **parameters: object) -> EvictionMethod:
    """Build a method of `METHODS`, with changed `parameters` of its scorer or its allocator."""
    row = METHODS[name]
    assert row.scorer is not None
    assert row.allocator is not None
    assert set(parameters) <= {*row.scorer.parameters, *row.allocator.parameters}
    made = build(MethodConfig(name, changed(row.scorer, parameters), changed(row.allocator, parameters)), where)
    assert made is not None
    return made
