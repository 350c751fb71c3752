"""Haystacks: long running text to hide a needle in."""

import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compresskv.errors import UserError
from compresskv.folders import package_files
from compresskv.inputs import expanded, read_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_END = re.compile(r"""[.!?]["')\]”’»]*(?=\s)|[。！？…]+["')\]”’»」』）】》]*""")
LINE_END = re.compile(r"(?<=[^\n])(?=\n)")
WORD_END = re.compile(r"(?<=\S)(?=\s)")

TOLERANCE = 0.02
"""How far from the depth asked for a needle may be, as a share of the haystack's tokens, before the run says so."""

LONG_SENTENCE = 150
"""Tokens. A sentence end as near as this before the depth is taken even beyond the tolerance, and the run says so."""

GIVE_TEXTS = "give a folder of .txt files, or one file"


@dataclass(frozen=True)
class Haystack:
    """Text, and a fingerprint of it."""

    text: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def essays(location: str | Sequence[str]) -> list[str]:
    """The texts of a folder, sorted by file name; `package:<package>/<folder>` or a path, of a folder or one file.

    Several locations (a list, or names with commas between) give the texts of all, in that order. Raises `UserError`
    where there is no text, or none in UTF-8.
    """
    return [text for place in locations(location) for text in _texts(place)]


def evaluated_and_held_out(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts that evaluations take, and the last ones, which are for calibrations alone.

    The held-out ones are the fewest that have a tenth of all characters. Where these would have more than a quarter,
    as where texts are few, none is held out.
    """
    total, size = sum(map(len, texts)), 0
    for count in range(1, len(texts)):
        size += len(texts[-count])
        if 10 * size >= total:
            return (list(texts[:-count]), list(texts[-count:])) if 4 * size <= total else (list(texts), [])
    return list(texts), []


def locations(location: str | Sequence[str]) -> tuple[str, ...]:
    """The places that `eval.haystack` names: a list, or one string with commas between unless a path has that name."""
    if isinstance(location, str):
        location = [location] if "," not in location or os.path.exists(location) else location.split(",")
    places = tuple(place.strip() for place in location)
    if not places or not all(places):
        raise UserError("eval.haystack", GIVE_TEXTS, value=location, why="it names nothing")
    if len(set(places)) < len(places):
        raise UserError("eval.haystack", "name each place once", value=location, why="it names a place twice")
    return places


def _texts(location: str) -> list[str]:
    path = _path(location)
    files = [path]
    if os.path.isdir(path):  # unlike Path.is_dir, no name makes it raise
        # Names that begin with a dot are other programs' notes, such as macOS's "._essay.txt".
        files = [file for file in sorted(path.glob("[!.]*.txt")) if not file.is_dir()]
    if not files or not os.path.lexists(path):
        raise UserError("eval.haystack", GIVE_TEXTS, value=path, why="there are no text files")
    texts = [_read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise UserError("eval.haystack", GIVE_TEXTS, value=path, why="the text there is empty")
    return texts


def _path(location: str) -> Path:
    if not location.startswith("package:"):
        return expanded(location, "eval.haystack")
    name = location.removeprefix("package:")
    package, _, inside = name.partition("/")
    if not package.isidentifier() or ".." in Path(inside).parts or inside.startswith("/"):
        raise UserError(
            "eval.haystack", "write package:<package>/<folder>, the package as it is imported", value=location
        )
    try:
        return package_files([name])[0]
    except UserError as error:
        raise UserError("eval.haystack", error.fix, value=location, why=error.why) from error


def _read(file: Path) -> str:
    content = read_once(file, "eval.haystack")
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()  # with universal newlines
    except UnicodeDecodeError as error:
        raise UserError(
            "eval.haystack", "convert it", value=file, why=f"not valid UTF-8 ({error.reason} at byte {error.start + 1})"
        ) from error


@dataclass(frozen=True)
class Hidden:
    """A text with a needle in it.

    `start`: where the needle starts, in characters; `depth`: how deep that is in tokens, 0 to 1; `deviation`: that
    depth less the one asked for; `rule`: what the needle stands behind, a "sentence", "line", "word" or "token", or
    whether it is at the "start" or "end"; `repeats`: how often the haystack begins again, 0 where it is long enough.
    """

    text: str
    start: int
    depth: float
    deviation: float = 0.0
    rule: str = "token"
    repeats: int = 0

    @property
    def misplaced(self) -> bool:
        """Farther from the depth asked for than the tolerance."""
        return abs(self.deviation) > TOLERANCE + 1e-9


def hide(needle: str, haystack: str, tokens: int, depth: float, tokenizer: "PreTrainedTokenizerBase") -> Hidden:
    """Cut `haystack` to `tokens` tokens and put `needle` at the place that `find_place` finds at `depth` (0 to 1).

    The haystack is repeated if it is too short. Depth 0 is its start, depth 1 its end. Raises `UserError` where
    `tokens` is not positive, `depth` is outside 0 to 1, or the haystack is empty.
    """
    if tokens < 1:
        raise UserError("eval.lengths", "choose a longer one", why="the shortest length leaves no room for a haystack")
    if not 0 <= depth <= 1:
        raise UserError("eval.depths", "choose 0 to 100 per cent", value=100 * depth)
    if not haystack.strip():
        raise UserError("eval.haystack", GIVE_TEXTS, why="the text there is empty")
    # About four characters make a token; a text too short is tried again, longer.
    characters = tokens * 6
    while True:
        text = (haystack * (characters // len(haystack) + 1))[:characters]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        if len(offsets) > tokens:
            break
        characters *= 2
    starts = [first for first, _ in offsets[: tokens + 1]]
    text = text[: starts[tokens]]
    start, rule = find_place(text, starts, depth)
    actual = sum(1 for first in starts[:tokens] if first < start) / tokens
    return Hidden(
        text[:start] + needle + text[start:],
        start,
        depth=actual,
        deviation=actual - depth,
        rule=rule,
        repeats=(len(text) - 1) // len(haystack),
    )


def find_place(text: str, starts: Sequence[int], depth: float) -> tuple[int, str]:
    """Where in `text` a needle at `depth` (0 to 1) goes, in characters, and the rule that it follows.

    `starts`: where each token of `text` begins, and at last where the text ends, [tokens + 1]. The rules, in turn:
    the last sentence end at or before the depth, within `TOLERANCE` or within `LONG_SENTENCE` tokens; the first
    sentence end behind it; a line end; a word's end, each within `TOLERANCE`, those before the depth first; the token.
    """
    tokens = len(starts) - 1
    if depth <= 0:
        return 0, "start"
    if depth >= 1:
        return len(text), "end"
    index = round(depth * tokens)
    lowest = min(index, math.ceil((depth - TOLERANCE) * tokens))
    highest = max(index, math.floor((depth + TOLERANCE) * tokens))
    limit, low, high = starts[index], starts[max(0, lowest)], starts[min(highest, tokens)]
    sentence_low = starts[max(0, min(lowest, index - LONG_SENTENCE))]
    sentence_high = starts[min(max(highest, index + LONG_SENTENCE), tokens)]
    ends = _ends(SENTENCE_END, text, sentence_low, sentence_high)
    if sentence_low == 0 and ends:
        ends.insert(0, 0)  # a sentence begins where the text does, if one ends near
    for rule, places in (
        ("sentence", [end for end in ends if end <= max(limit, high)]),
        ("line", _ends(LINE_END, text, low, high)),
        ("word", _ends(WORD_END, text, low, high)),
    ):
        if places:
            return max((end for end in places if end <= limit), default=places[0]), rule
    return limit, "token"


def _ends(pattern: re.Pattern[str], text: str, low: int, high: int) -> list[int]:
    """Where matches of `pattern` end, from `low` to `high`, in ascending order."""
    # The punctuation may begin before `low`, and white space follow `high`.
    matches = pattern.finditer(text, max(0, low - 8), high + 1)
    return [match.end() for match in matches if low <= match.end() <= high]


def sentence_end(text: str, limit: int) -> int:
    """The last position at or before `limit` at which a sentence of `text` ends; 0 if none does."""
    ends = [match.end() for match in SENTENCE_END.finditer(text, max(0, limit - 4000), limit + 2)]
    return max((end for end in ends if end <= limit), default=0)
