"""Load the needles of needle-in-a-haystack from needles.yaml."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from compresskv.errors import UserError

PATH = Path(__file__).with_name("needles.yaml")


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question about it, the answer to find, and the first words of the answer."""

    kind: str
    needle: str
    question: str
    answer: str
    answer_prefix: str


def needles(count: int) -> list[Needle]:
    """Return the first `count` needles. The position of a needle is its number in sample ids such as `L1000-D50-N3`.

    Raises `UserError` if `count` is less than 1 or exceeds the number of needles.
    """
    known = _all()
    if isinstance(count, bool) or not 1 <= count <= len(known):
        raise UserError("eval.needles", f"choose 1 to {len(known)}", value=count)
    return list(known[:count])


def fingerprint() -> str:
    """Return a hash of all needles."""
    return hashlib.sha256(_content()).hexdigest()[:16]


@cache
def _all() -> tuple[Needle, ...]:
    return tuple(Needle(**fields) for fields in yaml.safe_load(_content()))


@cache
def _content() -> bytes:
    return PATH.read_bytes()
