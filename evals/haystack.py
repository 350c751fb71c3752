"""Haystacks: long running text to hide a needle in."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from compresskv.checkpoints import package_file
from compresskv.errors import UserError

SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s)""")


@dataclass(frozen=True)
class Haystack:
    """Text, and a fingerprint of it."""

    text: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def essays(location: str) -> list[str]:
    """The texts of a folder, sorted by file name; `package:<package>/<folder>` or a path, of a folder or one file."""
    if location.startswith("package:"):
        folder = package_file(location.removeprefix("package:"))
    else:
        folder = Path(location).expanduser()
    files = [folder] if folder.is_file() else sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"eval.haystack={location}: no text files there: give a folder of .txt files, or one file")
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def sentence_end(text: str, limit: int) -> int:
    """The last position at or before `limit` at which a sentence of `text` ends; 0 if none does."""
    ends = [match.end() for match in SENTENCE_END.finditer(text, max(0, limit - 4000), limit + 2)]
    return max((end for end in ends if end <= limit), default=0)


@dataclass(frozen=True)
class Hidden:
    """A text with a needle in it: where the needle starts, in characters, and how deep that is in tokens, 0 to 1."""

    text: str
    start: int
    depth: float


def hide(needle: str, haystack: str, tokens: int, depth: float, tokenizer: PreTrainedTokenizerBase) -> Hidden:
    """Cut `haystack` to `tokens` tokens and put `needle` at the sentence end at or before `depth` (0 to 1) of them.

    The haystack is repeated if it is too short. Depth 0 is its start, depth 1 its end. Raises `UserError` where
    `tokens` is not positive.
    """
    if tokens < 1:
        raise UserError("eval.lengths: the shortest length leaves no room for a haystack: choose a longer one")
    # About four characters make a token; a text too short is tried again, longer.
    characters = tokens * 6
    while True:
        text = (haystack * (characters // len(haystack) + 1))[:characters]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        if len(offsets) > tokens:
            break
        characters *= 2
    text = text[: offsets[tokens][0]]
    start = 0 if depth <= 0 else len(text)
    if 0 < depth < 1:
        start = sentence_end(text, offsets[round(depth * tokens)][0])
    before = sum(1 for first, _ in offsets[:tokens] if first < start)
    return Hidden(text[:start] + needle + text[start:], start, before / tokens)
