"""Load the needles of needle-in-a-haystack from needles.yaml."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml

from compresskv.checking import Ge, Le, checked_value

CONTENT = Path(__file__).with_name("needles.yaml").read_bytes()


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question about it, the answer to find, and the first words of the answer."""

    kind: str
    needle: str
    question: str
    answer: str
    answer_prefix: str


def needles(count: int) -> list[Needle]:
    """Return the first `count` needles. A needle's position in this list is its number in sample ids such as
    `L1000-D50-N3`.

    Raises `UserError` if `count` is less than 1 or exceeds the number of needles.
    """
    return list(_all()[: checked_value("eval.needles", Annotated[int, Ge(1), Le(len(_all()))], count)])


@cache
def _all() -> tuple[Needle, ...]:
    return tuple(Needle(**fields) for fields in yaml.safe_load(CONTENT))
