"""The values of every field in both protocols, and an example in which they differ; every field needs one."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compresskv import calibration
from compresskv.checking import checked
from compresskv.detokenise import text_of
from compresskv.eviction import PromptShape
from compresskv.folders import CONF
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.head_masking.choices import Choice
from evals.head_masking.config import HeadMasking
from evals.head_masking.evaluation import MaskingTask
from evals.longbench.config import LongBench
from evals.longbench.evaluation import LongBenchTask
from evals.longbench.tasks import TASKS
from evals.niah.config import NeedleGrid
from evals.niah.evaluation import NiahTask
from tests.methods.construction import (
    FIRST,
    LENGTH,
    WINDOW,
    allocated,
    attending,
    blank,
    context,
    kept,
    method,
    nearly_equal_logits,
)

FIELDS = [field.name for field in fields(EvaluationProtocol) if field.name != "name"]


def from_conf(name: str) -> EvaluationProtocol:
    return checked("protocol", EvaluationProtocol, yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text()))


CORRECTED, RELEASED = from_conf("corrected"), from_conf("released")


@dataclass(frozen=True)
class World:
    """The inputs of an example besides the protocol."""

    model: LoadedModel
    niah: Callable[..., Any]
    folder: Path


Example = Callable[[EvaluationProtocol, World], Any]

SMALL = PromptShape(1, 2, LENGTH, WINDOW)
PYRAMID = PromptShape(4, 1, 100, 2)


def small(name: str, protocol: EvaluationProtocol, budget: int) -> Any:
    """The kept positions of a small prompt in one layer, by KV head, including a window of 2."""
    return kept(method(name, context(SMALL, protocol=protocol)), [attending(FIRST)], budget)[0]


def pyramid(protocol: EvaluationProtocol, length: int, first_prompt: int | None = None, beta: float = 4) -> list[int]:
    """Tokens of PyramidKV's four layers at 14 tokens, a window of 2 included."""
    shape = replace(PYRAMID, length=length)
    where = context(shape, protocol=protocol, first_prompt=first_prompt)
    capacities = allocated(method("pyramidkv", where, beta=beta).allocator, blank(shape), shape, 14)
    return [capacity + 2 for capacity in capacities]  # type: ignore[operator]


def exact_budget(protocol: EvaluationProtocol, world: World) -> Any:
    """Mean tokens of PyramidKV's 32 layers at 128."""
    shape = PromptShape(32, 1, 10_000, 8)
    chosen = method("pyramidkv", context(shape, protocol=protocol))
    return sum(allocated(chosen.allocator, blank(shape), shape, 128)) / 32 + 8  # type: ignore[arg-type]


def score_dtype(protocol: EvaluationProtocol, world: World) -> Any:
    """Which of two nearly equal tokens is kept."""
    chosen = method("snapkv", context(PromptShape(1, 1, 6, 2), 1, protocol=protocol))
    return kept(chosen, [nearly_equal_logits()], 3)[0][0][0]


def generation_config(protocol: EvaluationProtocol, world: World) -> Any:
    asking = replace(world.model, generation_defaults={"repetition_penalty": 1.05})
    return dict(asking.settings(protocol.generation_config))


def decode_cleanup(protocol: EvaluationProtocol, world: World) -> Any:
    """What a tokenizer that asks for the clean-up makes of "a != b"."""
    tokenizer = copy.copy(world.model.tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer("a != b", add_special_tokens=False).input_ids
    return text_of(ids, tokenizer, protocol.decode_cleanup)


def srh_multiplicity(protocol: EvaluationProtocol, world: World) -> Any:
    """Head 0 has the larger mass, head 1 the larger count."""
    where = context(SMALL, protocol=protocol)
    assert where.calibration is not None
    scores = {"semantic": ((0.7, 0.6, 0.1, 0.0),), "semantic_count": ((1.1, 2.3, 0.2, 0.0),)}
    where = replace(where, calibration=replace(where.calibration, head_scores=scores))
    return method("compresskv", where).scorer.heads  # type: ignore[attr-defined]


def calibration_data(protocol: EvaluationProtocol, world: World) -> Any:
    made = calibration.choose("smollm2-135m", "auto", protocol)
    return made and made.source


def niah(protocol: EvaluationProtocol, world: World) -> NiahTask:
    return NiahTask(world.niah(), world.model, protocol)


def niah_prompt(protocol: EvaluationProtocol, world: World) -> Any:
    text = world.model.tokenizer.decode(niah(protocol, world).sample("L800-D0-N0").ids)
    return "[INST]" in text, "<|im_start|>" in text


def niah_special_tokens(protocol: EvaluationProtocol, world: World) -> Any:
    """How many BOS a prompt has."""
    return int((niah(protocol, world).sample("L800-D0-N0").ids == 1).sum())


def niah_sentence_rule(protocol: EvaluationProtocol, world: World) -> Any:
    """Whether needles asked for in the middle are at the very start."""
    task = niah(protocol, world)
    return task.sample(task.sample_ids[5]).record["actual_depth"] == 0


def masking_sentence_rule(protocol: EvaluationProtocol, world: World) -> Any:
    """The same for head masking's needles; this tokenizer lacks Llama 2's ids."""
    asked = {field.name: getattr(world.niah(), field.name) for field in fields(NeedleGrid)}
    config = HeadMasking(**{**asked, "name": "head_masking"}, rankings=("semantic",), masked=(0,), draws=0)
    task = MaskingTask(config, world.model, protocol, Choice("none", 0, None, ()))
    return task.sample(task.sample_ids[5]).record["actual_depth"] == 0


def longbench(protocol: EvaluationProtocol, world: World, name: str) -> LongBenchTask:
    row = {"input": "Where?", "context": "x" * 33_000, "answers": ["here"], "all_classes": None, "length": 1}
    (world.folder / "qasper.jsonl").write_text(json.dumps(row) + "\n")
    config = LongBench("longbench", "unused", ("qasper",), None, None, None, None)
    return LongBenchTask(config, TASKS["qasper"], world.folder, replace(world.model, name=name), protocol)


def chat_wrapper(protocol: EvaluationProtocol, world: World) -> Any:
    """Whether Mistral is prompted in its chat format."""
    task = longbench(protocol, world, "mistral")
    return "[INST]" in task.render(task.records["0"]).text


def longbench_truncation(protocol: EvaluationProtocol, world: World) -> Any:
    """Whether a prompt of about 34 thousand tokens is cut for a window of 8192."""
    task = longbench(protocol, world, "Qwen2.5-7B-Instruct")
    return task.render(task.records["0"]).truncated


EXAMPLES: dict[str, tuple[Example, Any, Any]] = {
    "gqa_grouping": (
        lambda protocol, world: small("snapkv", protocol, 4),
        [[0, 3, 6, 7], [1, 5, 6, 7]],
        [[0, 1, 6, 7], [3, 4, 6, 7]],
    ),
    "streaming_tail": (
        lambda protocol, world: small("streaming_llm", protocol, 5),
        [[0, 1, 2, 3, 7]] * 2,
        [[0, 1, 2, 6, 7]] * 2,
    ),
    "pyramid_schedule": (
        lambda protocol, world: pyramid(protocol, 100, first_prompt=24, beta=12),
        [25, 18, 10, 3],
        [24, 17, 11, 4],
    ),
    "pyramid_short_prompt": (lambda protocol, world: pyramid(protocol, 20), [14, 14, 14, 14], [20, 16, 12, 8]),
    "exact_budget": (exact_budget, 128, 133.5),
    "score_dtype": (score_dtype, 1, 0),
    "generation_config": (generation_config, {}, {"repetition_penalty": 1.05}),
    "decode_cleanup": (decode_cleanup, "a != b", "a!= b"),
    "srh_multiplicity": (srh_multiplicity, ((0,),), ((1,),)),
    "calibration_data": (calibration_data, "held_out", "longbench"),
    "niah_prompt": (niah_prompt, (True, False), (False, True)),
    "niah_special_tokens": (niah_special_tokens, 1, 4),
    "niah_sentence_rule": (niah_sentence_rule, False, True),
    "masking_sentence_rule": (masking_sentence_rule, False, True),
    "chat_wrapper": (chat_wrapper, True, False),
    "longbench_truncation": (longbench_truncation, True, False),
}
"""By field: an example, its result under `corrected`, and its result with this field as in `released`."""


@pytest.fixture
def world(mistral_like, niah, tmp_path) -> World:
    return World(mistral_like, niah, tmp_path)


@pytest.mark.parametrize("field", FIELDS)
def test_both_protocols_differ_as_specified(field: str, world: World) -> None:
    ours, theirs = getattr(CORRECTED, field), getattr(RELEASED, field)
    assert getattr(EvaluationProtocol(), field) == ours
    if field == "head_pooling":  # its third value is in neither protocol: see methods/test_protocol.py
        assert ours == theirs
        return
    example, corrected, released = EXAMPLES[field]
    assert example(CORRECTED, world) == corrected
    assert example(replace(CORRECTED, **{field: theirs}), world) == released
    assert corrected != released
    assert len(EXAMPLES) == len(FIELDS) - 1
