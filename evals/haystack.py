"""Haystacks: long running text to hide a needle in."""

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
from compresskv.inputs import expanded, fingerprint, read_once

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

SENTENCE_END = re.compile(r"""[.!?]["')\]”’»]*(?=\s)|[。！？…]+["')\]”’»」』）】》]*""")
LINE_END = re.compile(r"(?<=[^\n])(?=\n)")
WORD_END = re.compile(r"(?<=\S)(?=\s)")

TOLERANCE = 0.02
"""Distance from the requested depth, as a share of the haystack's tokens, above which a needle is reported."""

LONG_SENTENCE = 150
"""A sentence end up to this many tokens before the depth is used even beyond the tolerance; the run then reports it."""

GIVE_TEXTS = "give a folder of .txt files, or one file"


@dataclass(frozen=True)
class Haystack:
    """A text with its fingerprint."""

    text: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.text)


def essays(location: str | Sequence[str]) -> list[str]:
    """Return the texts of folders, sorted by file name, and files, given as `package:<package>/<folder>` or path.

    Several `location`s are a list, or separated by commas.
    """
    return [text for place in locations(location) for text in _texts(place)]


def evaluated_and_held_out(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split texts into texts for evaluations and the last texts, which are held out for calibrations.

    The held-out texts are the smallest number that have at least a tenth of all characters. If they would have more
    than a quarter, for example because there are few texts, no text is held out.
    """
    total, size = sum(map(len, texts)), 0
    for count in range(1, len(texts)):
        size += len(texts[-count])
        if 10 * size >= total:
            return (list(texts[:-count]), list(texts[-count:])) if 4 * size <= total else (list(texts), [])
    return list(texts), []


def locations(location: str | Sequence[str]) -> tuple[str, ...]:
    """Return the locations in `eval.haystack`: a list, or a string separated by commas that is not itself a path."""
    if isinstance(location, str):
        location = [location] if "," not in location or os.path.exists(location) else location.split(",")
    places = tuple(place.strip() for place in location)
    if not places or not all(places):
        raise UserError("eval.haystack", GIVE_TEXTS, value=location, why="it contains no location")
    if len(set(places)) < len(places):
        raise UserError("eval.haystack", "list each location once", value=location, why="it lists a location twice")
    return places


def _texts(location: str) -> list[str]:
    path = _path(location)
    files = [path]
    if os.path.isdir(path):  # never raises, unlike Path.is_dir
        # Skip names that begin with a dot, which other programs create, such as macOS's "._essay.txt".
        files = [file for file in sorted(path.glob("[!.]*.txt")) if not file.is_dir()]
    if not files or not os.path.lexists(path):
        raise UserError("eval.haystack", GIVE_TEXTS, value=path, why="the folder has no text files")
    texts = [_read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise UserError("eval.haystack", GIVE_TEXTS, value=path, why="the text is empty")
    return texts


def _path(location: str) -> Path:
    if not location.startswith("package:"):
        return expanded(location, "eval.haystack")
    name = location.removeprefix("package:")
    package, _, inside = name.partition("/")
    if not package.isidentifier() or ".." in Path(inside).parts or inside.startswith("/"):
        raise UserError(
            "eval.haystack", "write package:<package>/<folder>, with the import name of the package", value=location
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
    """A text that contains a needle.

    - `start`: start of the needle, in characters.
    - `depth`: its depth in tokens, 0 to 1; `deviation`: this depth minus the requested depth.
    - `rule`: the end that the needle follows, "sentence", "line", "word" or "token", or its place, "start" or "end".
    - `repeats`: how often the haystack is repeated; 0 if it is long enough.
    """

    text: str
    start: int
    depth: float
    deviation: float = 0.0
    rule: str = "token"
    repeats: int = 0

    @property
    def misplaced(self) -> bool:
        """Whether the needle is farther from the requested depth than `TOLERANCE`."""
        return abs(self.deviation) > TOLERANCE + 1e-9


def hide(needle: str, haystack: str, tokens: int, depth: float, tokenizer: "PreTrainedTokenizerBase") -> Hidden:
    """Cut `haystack` to `tokens` tokens and insert `needle` where `find_place` places it for `depth` (0 to 1).

    The haystack is repeated if it is too short. Depth 0 is its start, depth 1 its end.
    """
    if tokens < 1:
        raise UserError(
            "eval.lengths", "choose a larger length", why="the shortest length leaves no room for a haystack"
        )
    if not 0 <= depth <= 1:
        raise UserError("eval.depths", "choose 0 to 100 per cent", value=100 * depth)
    if not haystack.strip():
        raise UserError("eval.haystack", GIVE_TEXTS, why="the text is empty")
    text, encoded = beginning(haystack, tokens, tokenizer)
    starts = [first for first, _ in encoded.offset_mapping[: tokens + 1]]
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


def beginning(
    haystack: str, tokens: int, tokenizer: "PreTrainedTokenizerBase", special: bool = False
) -> tuple[str, "BatchEncoding"]:
    """Return the first characters of a haystack, repeated if too short, with more than `tokens` tokens, encoded."""
    # A token has about four characters; if the text is too short, try again with twice the length.
    characters = tokens * 6
    while True:
        text = (haystack * (characters // len(haystack) + 1))[:characters]
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        if len(encoded.input_ids) > tokens:
            return text, encoded
        characters *= 2


def find_place(text: str, starts: Sequence[int], depth: float) -> tuple[int, str]:
    """Return the position in `text`, in characters, for a needle at `depth` (0 to 1), and the rule that was used.

    `starts` holds the start of each token of `text`, followed by the end of the text, [tokens + 1]. The rules are tried
    in this order: the last sentence end at or before the depth, within `TOLERANCE` or `LONG_SENTENCE` tokens; the first
    sentence end after it; a line end; a word end; the token. Ends after the depth, and all line and word ends, must be
    within `TOLERANCE`. Ends before the depth are tried first.
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
        ends.insert(0, 0)  # the start of the text counts as a sentence end if another end is near
    for rule, places in (
        ("sentence", [end for end in ends if end <= max(limit, high)]),
        ("line", _ends(LINE_END, text, low, high)),
        ("word", _ends(WORD_END, text, low, high)),
    ):
        if places:
            return max((end for end in places if end <= limit), default=places[0]), rule
    return limit, "token"


def _ends(pattern: re.Pattern[str], text: str, low: int, high: int) -> list[int]:
    """Return the ends of matches of `pattern` from `low` to `high`, in ascending order."""
    # Punctuation may begin before `low`, and white space may follow `high`.
    matches = pattern.finditer(text, max(0, low - 8), high + 1)
    return [match.end() for match in matches if low <= match.end() <= high]


def sentence_end(text: str, limit: int) -> int:
    """Return the last position up to `limit` where a sentence of `text` ends; 0 if no sentence ends there."""
    ends = [match.end() for match in SENTENCE_END.finditer(text, max(0, limit - 4000), limit + 2)]
    return max((end for end in ends if end <= limit), default=0)
