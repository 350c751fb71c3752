"""What is refused, and what is taken, and as what."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from compresskv.checking import (
    AllowInfNan,
    Ge,
    Le,
    MinLen,
    Name,
    PathText,
    checked,
    checked_value,
    frozen,
    refuse_unknown,
)
from compresskv.errors import UserError
from compresskv.observation import ObservationConfig
from tests.support.refusals import refused

NAN, INFINITY = float("nan"), float("inf")
Count = Annotated[int, Ge(1), Le(100)]
ODDITIES = [10**400, 10**5000, NAN, INFINITY, None, [], {}, "", "text", "a\0b", "\ud800", -1, 0, 1.5, True, [[]]]


@dataclass(frozen=True)
class Settings:
    name: Name
    count: Count = 1
    share: float | None = None
    lengths: Annotated[tuple[Count, ...], MinLen(1)] = (1,)
    pair: tuple[float, float] = (0.0, 0.0)
    kind: Literal["a", "b"] | None = None
    observation: ObservationConfig = ObservationConfig()


def test_what_is_taken() -> None:
    values = {"name": "x", "share": 2, "lengths": [3, 4], "pair": [1, 2.5], "observation": {"window": 4}}
    made = checked("here", Settings, values)
    assert made == Settings("x", 1, 2.0, (3, 4), (1.0, 2.5), None, ObservationConfig(4))
    assert isinstance(made.share, float)
    assert hash(made) == hash(checked("here", Settings, values))


@pytest.mark.parametrize(
    ("values", "field", "value", "names"),
    [
        ({}, "here.name", ..., ""),
        (None, "here", None, "name, count"),
        ([], "here", [], "name, count"),
        ({"name": "x", "cuont": 1}, "here.cuont", ..., "here.count"),
        ({"name": "x", "zzz": 1}, "here.zzz", ..., "count, kind, lengths, name"),
        ({"name": "x", 3: 1}, "here.3", ..., ""),
        ({"name": "x", "count": True}, "here.count", True, "100"),
        ({"name": "x", "count": 2.0}, "here.count", 2.0, "100"),
        ({"name": "x", "share": "2"}, "here.share", "2", "null"),
        ({"name": "x", "lengths": [3, 0]}, "here.lengths[1]", 0, "1"),
        ({"name": "x", "lengths": []}, "here.lengths", (), ""),
        ({"name": "x", "lengths": 4}, "here.lengths", 4, ""),
        ({"name": "x", "pair": [1]}, "here.pair", (1,), "2"),
        ({"name": "x", "kind": "c"}, "here.kind", "c", "a, b or null"),
        ({"name": "x", "observation": {"kernel": 4}}, "here.observation.kernel", 4, ""),
        ({"name": "x", "observation": None}, "here.observation", None, "window"),
    ],
)
def test_what_is_refused(values: Any, field: str, value: Any, names: str) -> None:
    with refused(field, value=value, names=names):
        checked("here", Settings, values)


@pytest.mark.parametrize("hint", [Count, float, float | None, Count | None, Name, PathText, tuple[Count, ...], bool])
def test_oddities_are_taken_or_one_short_sentence(hint: Any) -> None:
    said = []
    for value in ODDITIES:
        try:
            checked_value("field", hint, value)
        except UserError as error:
            said.append(str(error))
    assert said
    for sentence in said:
        assert sentence.startswith("field")
        assert sentence.isprintable()
        assert len(sentence) < 250


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 10**400])
def test_infinities_are_refused_unless_the_field_takes_them(value: float) -> None:
    with refused("field", value=value):
        checked_value("field", float, value)
    if isinstance(value, float):
        assert repr(checked_value("field", Annotated[float, AllowInfNan()], value)) == repr(value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\nb", "a\0", ".hidden", "x" * 201, None]
)
def test_a_name_stays_in_its_folder(name: str | None) -> None:
    with refused("model.name", value=name):
        checked_value("model.name", Name, name)
    assert checked_value("model.name", Name, "Qwen2.5-7B (mine), ü") == "Qwen2.5-7B (mine), ü"


@pytest.mark.parametrize(
    ("name", "value"), [("window", 0), ("window", 99999999999), ("kernel", 99999999999), ("kernel", -1)]
)
def test_observation_ranges(name: str, value: int) -> None:
    with refused(f"observation.{name}", value=value):
        checked("observation", ObservationConfig, {name: value})


def test_unknown_names() -> None:
    refuse_unknown("", ["budget"], ["budget", "memory"])
    with refused("budgett", names="budget"):
        refuse_unknown("", ["budgett"], ["budget", "memory"])


def test_frozen_values_are_keys() -> None:
    first, second = frozen({"a": [1, {"b": [2]}]}), frozen({"a": (1.0, {"b": (2,)})})
    assert first == second
    assert hash(first) == hash(second)
