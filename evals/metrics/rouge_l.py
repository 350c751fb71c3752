"""ROUGE-L with the values of the PyPI package `rouge` 1.0.1, without its recursion and its quadratic tables.

The package scores summary-level ROUGE-L (Lin 2004): for every reference and prediction sentence it backtracks one
longest common subsequence (LCS) through a table and takes the union of the *words* found, counted once each
("exclusive"). The result depends on which LCS the backtracking finds, so this module keeps its order of choices: match,
else up if strictly better, else left.
"""

from dataclasses import dataclass
from functools import lru_cache

# The package backtracks by recursion, and the official evaluation turns a RecursionError into a score of 0. How many
# calls fit under Python's default limit of 1000 depends on the caller's own stack; fewer than this many always do.
RECURSION_DEPTH = 950


@dataclass(frozen=True)
class RougeL:
    """`f`: ROUGE-L F-measure, 0 to 1. `overflow`: whether the package would recurse `RECURSION_DEPTH` calls or more."""

    f: float
    overflow: bool


def rouge_l(prediction: str, reference: str) -> RougeL:
    """Compute `Rouge().get_scores(prediction, reference, avg=True)["rouge-l"]["f"]` of `rouge` 1.0.1 for one pair.

    f = 2pr / (p + r + 1e-8), where p and r are the number of LCS words found divided by the number of distinct words
    of the prediction and of the reference. A text without a sentence (empty, or only full stops) scores 0; the package
    raises an error.
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
            # The LCS has only common words, and at least one if any exist, so its words are often known without it.
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
    """Split a text into distinct sentences, at ".", and each into words; only white space gives the single word ""."""
    sentences = (" ".join(part.split()) for part in text.split(".") if part)
    return tuple(tuple(sentence.split(" ")) for sentence in dict.fromkeys(sentences))


def _columns(words: tuple[str, ...]) -> dict[str, int]:
    """Return a bit mask of the positions of each word."""
    masks: dict[str, int] = {}
    for position, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << position
    return masks


def _backtrack(rows: tuple[str, ...], columns: dict[str, int], width: int) -> tuple[set[str], int]:
    """Return the words of the LCS that the package's backtracking finds, and the number of recursive calls it makes.

    Each row of the LCS table is a bit mask of the columns where it does *not* grow (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited"). Computing a row and finding the next step take a few integer operations each.
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
        # Go left while the words differ and the row does not grow here, so that going up is not better.
        column = ((match | ~flat) & ((1 << column) - 1)).bit_length()
        if column and match >> (column - 1) & 1:
            words.add(rows[row - 1])
            matched += 1
            row, column = row - 1, column - 1
        elif column:
            row -= 1
    calls = (len(rows) - row) + (width - column) - matched + 1
    return words, calls
