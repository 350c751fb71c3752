"""The values of every field in both protocols; where no other file does, an example in which they differ."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import yaml

from compresskv.checking import checked
from compresskv.eviction import PromptShape
from compresskv.folders import CONF
from compresskv.protocol import EvaluationProtocol
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


def small(name: str, protocol: EvaluationProtocol, budget: int) -> Any:
    """The kept positions of a small prompt in one layer, by KV head, including a window of 2."""
    chosen = method(name, context(PromptShape(1, 2, LENGTH, WINDOW), protocol=protocol))
    return kept(chosen, [attending(FIRST)], budget)[0]


def pyramid(protocol: EvaluationProtocol, length: int, first_prompt: int | None = None, beta: float = 4) -> list[int]:
    """Tokens of PyramidKV's four layers at 14 tokens, a window of 2 included."""
    shape = PromptShape(4, 1, length, 2)
    where = context(shape, protocol=protocol, first_prompt=first_prompt)
    capacities = allocated(method("pyramidkv", where, beta=beta).allocator, blank(shape), shape, 14)
    return [capacity + 2 for capacity in capacities]  # type: ignore[operator]


def exact_budget(protocol: EvaluationProtocol) -> Any:
    """Mean tokens of PyramidKV's 32 layers at 128."""
    shape = PromptShape(32, 1, 10_000, 8)
    chosen = method("pyramidkv", context(shape, protocol=protocol))
    return sum(allocated(chosen.allocator, blank(shape), shape, 128)) / 32 + 8  # type: ignore[arg-type]


def score_dtype(protocol: EvaluationProtocol) -> Any:
    """Which of two nearly equal tokens is kept."""
    chosen = method("snapkv", context(PromptShape(1, 1, 6, 2), 1, protocol=protocol))
    return kept(chosen, [nearly_equal_logits()], 3)[0][0][0]


EXAMPLES: dict[str, tuple[Callable[[EvaluationProtocol], Any], Any, Any]] = {
    "gqa_grouping": (
        lambda protocol: small("snapkv", protocol, 4),
        [[0, 3, 6, 7], [1, 5, 6, 7]],
        [[0, 1, 6, 7], [3, 4, 6, 7]],
    ),
    "streaming_tail": (
        lambda protocol: small("streaming_llm", protocol, 5),
        [[0, 1, 2, 3, 7]] * 2,
        [[0, 1, 2, 6, 7]] * 2,
    ),
    "pyramid_schedule": (
        lambda protocol: pyramid(protocol, 100, first_prompt=24, beta=12),
        [25, 18, 10, 3],
        [24, 17, 11, 4],
    ),
    "pyramid_short_prompt": (lambda protocol: pyramid(protocol, 20), [14, 14, 14, 14], [20, 16, 12, 8]),
    "exact_budget": (exact_budget, 128, 133.5),
    "score_dtype": (score_dtype, 1, 0),
}
"""By field: an example, its result under `corrected`, and its result with this field as in `released`."""

ELSEWHERE = {
    # methods/test_protocol.py, for a third value that is in neither protocol
    "head_pooling": ("run", "run"),
    # test_generation_config
    "generation_config": ("ignored", "honoured"),
    # test_calibration_fields.py
    "srh_multiplicity": ("indicator", "count"),
    "calibration_data": ("held_out", "longbench"),
    # test_niah_fields.py
    "niah_prompt": ("chat", "raw"),
    "niah_special_tokens": ("none", "leaked"),
    "niah_sentence_rule": ("text", "period_ids"),
    # head_masking/test_head_masking.py
    "masking_sentence_rule": ("text", "llama2_ids"),
    # test_longbench_fields.py
    "decode_cleanup": (False, True),
    "chat_wrapper": ("template", "released"),
    "longbench_truncation": ("window", "released"),
}
"""By field: the values in both protocols, whose effects other tests show."""


@pytest.mark.parametrize("field", FIELDS)
def test_both_protocols_differ_as_specified(field: str) -> None:
    ours, theirs = getattr(CORRECTED, field), getattr(RELEASED, field)
    assert getattr(EvaluationProtocol(), field) == ours
    if field in ELSEWHERE:
        assert (ours, theirs) == ELSEWHERE[field]
        return
    example, corrected, released = EXAMPLES[field]
    assert example(CORRECTED) == corrected
    assert example(replace(CORRECTED, **{field: theirs})) == released
    assert corrected != released


def test_generation_config(mistral_like) -> None:
    asking = replace(mistral_like, generation_defaults={"repetition_penalty": 1.05})
    settings = [dict(asking.settings(protocol.generation_config)) for protocol in (CORRECTED, RELEASED)]
    assert settings == [{}, {"repetition_penalty": 1.05}]
