"""ROUGE-L with the values of the PyPI package `rouge` 1.0.1, without its recursion and its quadratic tables.

The package scores summary-level ROUGE-L (Lin 2004): for every reference and prediction sentence it backtracks one
longest common subsequence (LCS) through a table and unites the *words* found, counted once each ("exclusive"). Which
LCS the backtracking finds matters, so its order of choices is kept: match, else up if strictly better, else left.
"""

from dataclasses import dataclass
from functools import lru_cache

# The package backtracks by recursion, and the official evaluation turns a RecursionError into a score of 0. How many
# calls fit under Python's default limit of 1000 depends on the caller's own stack; fewer than this many always do.
RECURSION_DEPTH = 950


@dataclass(frozen=True)
class RougeL:
    """`f`: ROUGE-L F-measure, 0 to 1. `overflow`: the package would recurse `RECURSION_DEPTH` calls or deeper."""

    f: float
    overflow: bool


def rouge_l(prediction: str, reference: str) -> RougeL:
    """ROUGE-L of one pair: `Rouge().get_scores(prediction, reference, avg=True)["rouge-l"]["f"]` of `rouge` 1.0.1.

    f = 2pr / (p + r + 1e-8) with p, r = united LCS words over the distinct words of prediction and reference. A text
    without a sentence (empty, or only full stops), for which the package raises, scores 0.
    """
    candidates, references = _sentences(prediction), _sentences(reference)
    if not candidates or not references:
        return RougeL(0.0, overflow=False)
    covered: set[str] = set()
    overflow = False
    columns = [_columns(candidate) for candidate in candidates]
    for sentence in references:
        words = set(sentence)
        for candidate, column in zip(candidates, columns, strict=True):
            may_overflow = len(sentence) + len(candidate) >= RECURSION_DEPTH
            common = words & column.keys()
            # The LCS holds common words only, and at least one if there is any: often its words are known without it.
            if not may_overflow and (len(common) < 2 or common <= covered):
                covered |= common
                continue
            longest, depth = _backtrack(sentence, column, len(candidate))
            covered |= longest
            overflow |= depth >= RECURSION_DEPTH
    precision = len(covered) / len(set().union(*candidates))
    recall = len(covered) / len(set().union(*references))
    return RougeL(2.0 * (precision * recall / (precision + recall + 1e-8)), overflow)


@lru_cache(maxsize=256)
def _sentences(text: str) -> tuple[tuple[str, ...], ...]:
    """Words of each distinct sentence; a sentence ends at "." and one of white space alone is the single word ""."""
    sentences = (" ".join(part.split()) for part in text.split(".") if part)
    return tuple(tuple(sentence.split(" ")) for sentence in dict.fromkeys(sentences))


def _columns(words: tuple[str, ...]) -> dict[str, int]:
    """Bit mask of the positions of each word."""
    masks: dict[str, int] = {}
    for position, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << position
    return masks


def _backtrack(rows: tuple[str, ...], columns: dict[str, int], width: int) -> tuple[set[str], int]:
    """Words of the LCS that the package's backtracking finds, and how many recursive calls that takes.

    A row of the LCS table is kept as the bit mask of the columns where it does *not* grow (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited"), so a row costs a few integer operations, and so does finding the next step.
    """
    everywhere = (1 << width) - 1
    flat = everywhere
    table = []
    for word in rows:
        match = columns.get(word, 0)
        if match:
            both = flat & match
            flat = ((flat + both) | (flat - both)) & everywhere
        table.append((match, flat))

    words: set[str] = set()
    matched = 0
    row, column = len(rows), width
    while row and column:
        match, flat = table[row - 1]
        # Left as long as the words differ and the row does not grow here, which is when going up is no better.
        column = ((match | ~flat) & ((1 << column) - 1)).bit_length()
        if column and match >> (column - 1) & 1:
            words.add(rows[row - 1])
            matched += 1
            row, column = row - 1, column - 1
        elif column:
            row -= 1
    calls = (len(rows) - row) + (width - column) - matched + 1
    return words, calls
