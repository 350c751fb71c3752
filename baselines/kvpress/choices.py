"""The presses that other presses can wrap: presses whose scores do not depend on the budget."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from baselines.kvpress.press import PressScorer
from compresskv.checking import Ge, Le, Text, frozen
from compresskv.context import Context
from compresskv.methods import build, named_method

BasePress = Literal[
    "cap",
    "cur",
    "expected_attention",
    "keydiff",
    "knorm",
    "lagkv",
    "leverage_score",
    "non_causal_attn",
    "random",
    "snapkv",
    "tova",
]

KeyPress = Literal["keydiff", "knorm", "cur", "lagkv", "random"]
"""Base presses that read only keys and values."""


PressValue = bool | Annotated[int, Ge(-(2**31)), Le(2**31 - 1)] | Annotated[float, Ge(-1e9), Le(1e9)] | Text | None
"""A field of a wrapped press."""


def base_press(context: Context, press: str, settings: Mapping[str, Any]) -> PressScorer:
    """Build the press of conf/method/kvpress with its parameters, as changed by `settings`. Raises `UserError`."""
    config = named_method(f"kvpress/{press}")
    assert config.scorer is not None
    changed = replace(config.scorer, parameters=frozen({**config.scorer.parameters, **settings}))
    method = build(replace(config, scorer=changed), context)
    assert method is not None
    assert isinstance(method.scorer, PressScorer)
    return method.scorer
