"""The models on which methods are checked: tiny random models, which need no download, and random calibrations."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from compresskv.calibration import Calibration
from compresskv.context import Context
from compresskv.engine.model_shape import evicting_layers
from compresskv.eviction import EvictionMethod, LayerPrefill, observers
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol

MODEL = "conformance"
"""Name of the tiny models in a context."""

KV_HEADS, GROUP = 3, 2
"""Three KV heads with two query heads each: every wrong grouping differs from the right one."""

VOCABULARY = 96

SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": KV_HEADS * GROUP,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 1 << 20,
    "initializer_range": 0.2,
}


@cache
def dense() -> PreTrainedModel:
    """Return a model with three layers that all evict, in float32 on the CPU."""
    return _made(MistralForCausalLM(MistralConfig(**SIZE, sliding_window=None)))


@cache
def hybrid() -> PreTrainedModel:
    """Return a model with three layers. The last layer has a sliding window and does not evict."""
    config = Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=24, max_window_layers=2)
    return _made(Qwen2ForCausalLM(config))


@cache
def half() -> PreTrainedModel:
    """Return `dense` in bfloat16."""
    return copy.deepcopy(dense()).to(torch.bfloat16)


def _made(model: PreTrainedModel) -> PreTrainedModel:
    """Initialise the weights of `model` with a separate generator and a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, SIZE["initializer_range"], generator=generator)
    model.set_attn_implementation("sdpa")
    return model.eval()


def prompt(length: int, seed: int) -> Tensor:
    """Return random token ids [length]."""
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def evicting(model: PreTrainedModel) -> int:
    """Return the number of layers that evict."""
    return len(evicting_layers(model.config))


def seen_by(method: EvictionMethod, layer: LayerPrefill) -> LayerPrefill:
    """Return a copy of `layer` after the scorer's observer, if any, has seen its queries."""
    observed = observers([method.scorer])
    for observer in observed.values():
        observer(layer.queries, layer.keys, layer.scaling)
    return replace(layer, observed=observed)


def calibration(layers: int, q_heads: int, observation: ObservationConfig, model: str = MODEL) -> Calibration:
    """Return random head scores of every kind and random layer scores."""
    generator = torch.Generator().manual_seed(0)

    def scores() -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, torch.rand(layers, q_heads, generator=generator).tolist()))

    errors = torch.rand(layers, generator=generator) + 0.1
    kinds = ("semantic", "semantic_count", "traditional", "retrieval_reasoning")
    return Calibration(
        model=model,
        source="held_out",
        observation=observation,
        heads=1,
        layer_scores=tuple((errors / errors.sum()).tolist()),
        head_scores={kind: scores() for kind in kinds},
    )


@dataclass(frozen=True)
class Subject:
    """A method under test: a function that creates it, and the budget (tokens) to check it at.

    It is also checked at its smallest budget.
    """

    make: Callable[[Context], EvictionMethod]
    budget: int
    observation: ObservationConfig = ObservationConfig()
    protocol: EvaluationProtocol = EvaluationProtocol()

    def context(self, layers: int) -> Context:
        """Return the context of a tiny model with this number of evicting layers."""
        return Context(
            model=MODEL,
            layers=layers,
            q_heads=KV_HEADS * GROUP,
            kv_heads=KV_HEADS,
            observation=self.observation,
            protocol=self.protocol,
            calibration=calibration(layers, KV_HEADS * GROUP, self.observation),
        )

    def method(self, model: PreTrainedModel) -> EvictionMethod:
        """Return a new instance of the method."""
        return self.make(self.context(evicting(model)))

    def recalibrated(self, layer: int) -> EvictionMethod:
        """Return the method for `dense`. Its calibration has the head scores of `layer` in reverse order."""
        context = self.context(evicting(dense()))
        made = context.calibration
        assert made is not None
        turned = {}
        for kind, table in made.head_scores.items():
            turned[kind] = tuple(row[::-1] if index == layer else row for index, row in enumerate(table))
        return self.make(replace(context, calibration=replace(made, head_scores=turned)))

    def budgets(self, method: EvictionMethod) -> tuple[int, ...]:
        """Return the smallest budget that exceeds the window, and the chosen one."""
        return tuple(dict.fromkeys((method.window + 1, self.budget)))
