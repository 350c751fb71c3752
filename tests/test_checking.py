"""What is refused, and in which words; what is taken, and as what."""

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
    readable,
    refuse_unknown,
)
from compresskv.errors import UserError
from compresskv.observation import ObservationConfig

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
    ("values", "message"),
    [
        ({}, "here.name: is not set: give it a value"),
        (None, "here=null: choose a mapping of its settings, name, count, "),
        ([], "here=[]: choose a mapping"),
        ({"name": "x", "cuont": 1}, "here.cuont: no such setting: did you mean here.count?"),
        ({"name": "x", "zzz": 1}, "here.zzz: no such setting: choose one of count, kind, lengths, name, "),
        ({"name": "x", 3: 1}, "here.3: no such setting"),
        ({"name": "x", "count": True}, "here.count=true: choose a whole number, at least 1 and at most 100"),
        ({"name": "x", "count": 2.0}, "here.count=2.0: choose a whole number"),
        ({"name": "x", "share": "2"}, "here.share=2: choose a number or null"),
        ({"name": "x", "lengths": [3, 0]}, "here.lengths[1]=0: choose a whole number, at least 1"),
        ({"name": "x", "lengths": []}, "here.lengths=[]: choose a list, each item a whole number"),
        ({"name": "x", "lengths": 4}, "here.lengths=4: choose a list"),
        ({"name": "x", "pair": [1]}, "here.pair=[1]: choose a list of 2"),
        ({"name": "x", "kind": "c"}, "here.kind=c: choose one of a, b or null"),
        ({"name": "x", "observation": {"kernel": 4}}, "here.observation.kernel=4: choose an odd number"),
        ({"name": "x", "observation": None}, "here.observation=null: choose a mapping"),
    ],
)
def test_what_is_refused(values: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        checked("here", Settings, values)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("hint", [Count, float, float | None, Count | None, Name, PathText, tuple[Count, ...], bool])
@pytest.mark.parametrize("value", ODDITIES, ids=lambda value: readable(value)[:9])
def test_oddities_are_taken_or_one_short_sentence(hint: Any, value: Any) -> None:
    try:
        checked_value("field", hint, value)
    except UserError as error:
        sentence = str(error)
    else:
        return
    assert sentence.startswith("field")
    assert sentence.isprintable()
    assert len(sentence) < 250


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 10**400])
def test_infinities_are_refused_unless_the_field_takes_them(value: float) -> None:
    with pytest.raises(UserError, match=r"field=.*: choose a number"):
        checked_value("field", float, value)
    if isinstance(value, float):
        assert repr(checked_value("field", Annotated[float, AllowInfNan()], value)) == repr(value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\nb", "a\0", ".hidden", "x" * 201, None]
)
def test_a_name_stays_in_its_folder(name: str | None) -> None:
    with pytest.raises(UserError, match="choose a"):
        checked_value("model.name", Name, name)
    assert checked_value("model.name", Name, "Qwen2.5-7B (mine), ü") == "Qwen2.5-7B (mine), ü"


@pytest.mark.parametrize("values", [{"window": 0}, {"window": 99999999999}, {"kernel": 99999999999}, {"kernel": -1}])
def test_observation_ranges(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^observation\.\w+=-?\d+: choose a whole number, at least 1 and at most \d+$"):
        checked("observation", ObservationConfig, values)


def test_unknown_names() -> None:
    refuse_unknown("", ["budget"], ["budget", "memory"])
    with pytest.raises(UserError, match=r"^budgett: no such setting: did you mean budget\?$"):
        refuse_unknown("", ["budgett"], ["budget", "memory"])


def test_frozen_values_are_keys() -> None:
    first, second = frozen({"a": [1, {"b": [2]}]}), frozen({"a": (1.0, {"b": (2,)})})
    assert first == second
    assert hash(first) == hash(second)
