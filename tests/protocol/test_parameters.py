"""A method's parameter of the wrong type is one sentence that names it, not a traceback."""

from typing import Any

import pytest

from compresskv.errors import UserError
from compresskv.eviction import PromptShape
from tests.methods.construction import context, method


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("pyramidkv", "beta", "abc", r"method\.beta=abc: expected a number"),
        ("headkv", "temp", None, r"method\.temp=None: expected a number"),
        ("headkv", "head_scores", 3, r"method\.head_scores=3: expected a name"),
        ("cake", "gamma", "high", r"method\.gamma=high: expected a number"),
        ("adakv", "alpha", True, r"method\.alpha=True: expected a number"),
        ("random", "seed", 1.5, r"method\.seed=1\.5: expected a whole number"),
        ("compresskv", "heads", "abc", r"method\.heads=abc: .* choose 1 to 4"),
    ],
)
def test_wrong_type(name: str, parameter: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(name, context(PromptShape(2, 2, 20, 2)), **{parameter: value})


def test_whole_numbers_are_numbers() -> None:
    assert method("pyramidkv", context(PromptShape(2, 2, 20, 2)), beta=12).allocator.beta == 12  # type: ignore[attr-defined]
