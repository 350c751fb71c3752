"""The words of RULER's tasks: from the Python package wonderwords (MIT), or RULER's larger list for long prompts."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

from compresskv.errors import UserError
from compresskv.folders import package_files
from compresskv.inputs import read_once

RELEASE = "3.0.1"
"""Release of wonderwords. Other releases have other nouns, which would change every prompt."""

SHA256 = {
    "nounlist.txt": "8d88b3ebc2e2969ed92ebe49cdb0c8a87c2ad3b27493d7afdff608f2e51c5bc9",
    "adjectivelist.txt": "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
    "verblist.txt": "9fbf5e4e69b8869aebd88e6d545312ff9f878a747327ede5f6dbbba5c27b08ad",
}

MORE_WORDS = "english_words.json"
MORE_SHA256 = "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca"
"""SHA-256 of the file in NVIDIA/RULER c3f5e3b, scripts/data/synthetic/json, stored with Git LFS."""


class Joined(Sequence[str]):
    """The sorted, distinct `<first>-<second>` of two lists, computed on demand: RULER's lists give six million strings.

    Strings with the same first word are adjacent, so they form a block. If a first word with its hyphen is a prefix of
    another one, as "old-" of "old-fashioned-", both share a block.
    """

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._second = sorted(set(second))
        self._blocks: list[list[str]] = []
        for beginning in sorted(f"{word}-" for word in set(first)):
            if self._blocks and beginning.startswith(self._blocks[-1][0]):
                self._blocks[-1].append(beginning)
            else:
                self._blocks.append([beginning])
        self._shared = {
            place: sorted({beginning + word for beginning in block for word in self._second})
            for place, block in enumerate(self._blocks)
            if len(block) > 1
        }
        sizes = (len(self._shared.get(place, self._second)) for place in range(len(self._blocks)))
        self._ends = list(accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        block = bisect_right(self._ends, place)
        within = place - (self._ends[block - 1] if block else 0)
        if block in self._shared:
            return self._shared[block][within]
        return self._blocks[block][0] + self._second[within]


@cache
def keys() -> Joined:
    """Return the keys of needles: an adjective and a noun."""
    return Joined(_listed("adjectivelist.txt"), _listed("nounlist.txt"))


@cache
def all_words() -> tuple[str, ...]:
    """Return all nouns, adjectives and verbs, sorted."""
    return tuple(sorted({word for name in SHA256 for word in _listed(name)}))


def more_words(folder: Path | None, length: int) -> list[str]:
    """Return RULER's list, for prompts with more words than wonderwords has. Raises `UserError` without its file."""
    path = folder / MORE_WORDS if folder else None
    if path is None or not path.exists():
        raise UserError(
            "eval.lengths",
            f"choose shorter lengths, or put RULER's {MORE_WORDS} into the folder of eval.qa",
            value=length,
            why=f"cwe at this length needs more than the {len(all_words())} words of wonderwords",
        )
    return list(_more(path))


@cache
def _more(path: Path) -> tuple[str, ...]:
    content = read_once(path, "eval.qa")
    if (digest := hashlib.sha256(content).hexdigest()) != MORE_SHA256:
        raise UserError(
            "eval.qa", "get the file from NVIDIA/RULER with git lfs", value=path, why=f"its sha256 is {digest}"
        )
    return tuple(json.loads(content).values())


def _listed(name: str) -> list[str]:
    """Return the words in one of wonderwords' files. Raises `UserError` if the file is not from `RELEASE`."""
    fix = f"run `pip install wonderwords=={RELEASE}`"
    try:
        content = package_files([f"wonderwords/assets/{name}"])[0].read_bytes()
    except (UserError, OSError) as error:
        raise UserError("eval.tasks", fix, why="RULER's words come from wonderwords, which is not installed") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError("eval.tasks", fix, why=f"the {name} of the installed wonderwords has other words")
    return [line.rstrip() for line in content.decode().splitlines()]
