"""The needles of needle-in-a-haystack, in needles.yaml."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from compresskv.errors import UserError

PATH = Path(__file__).with_name("needles.yaml")


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, what is asked about it, the answer to find, and how the answer opens."""

    kind: str
    needle: str
    question: str
    answer: str
    answer_prefix: str


def needles(count: int) -> list[Needle]:
    """The first `count` needles; the number of a needle here is that in sample ids, as `L1000-D50-N3`.

    Raises `UserError` where there are not so many.
    """
    known = _all()
    if isinstance(count, bool) or not 1 <= count <= len(known):
        raise UserError("eval.needles", f"choose 1 to {len(known)}", value=count)
    return list(known[:count])


def fingerprint() -> str:
    """A hash of all needles."""
    return hashlib.sha256(_content()).hexdigest()[:16]


@cache
def _all() -> tuple[Needle, ...]:
    return tuple(Needle(**fields) for fields in yaml.safe_load(_content()))


@cache
def _content() -> bytes:
    return PATH.read_bytes()
