"""Scores by prompt length, for the tables of needles and of RULER, and by length and needle depth, for heatmaps."""

from collections.abc import Sequence
from statistics import fmean

from evals.results.record import Record, covered_lines
from evals.results.schema import Line
from evals.tables import text
from evals.tables.table import AVERAGE


def length_of(line: Line) -> str | None:
    """Return the column of a line by the length of its prompt."""
    return text.tokens(length) if isinstance(length := line.get("length"), int) else None


def lengths(records: Sequence[Record]) -> dict[str, float]:
    """Return the columns of all lengths, with the length of each."""
    present = {line["length"] for line in covered_lines(records) if "length" in line}
    return {text.tokens(length): float(length) for length in sorted(present)}


def failed_at(line: Line, column: str) -> bool:
    """Return whether the failed sample of `line` counts as missing in a column."""
    return column in (AVERAGE, length_of(line))


def means(records: Sequence[Record]) -> dict[tuple[int, float], float]:
    """Return the mean score by prompt length and needle depth."""
    scores: dict[tuple[int, float], list[float]] = {}
    for line in covered_lines(records):
        length, depth = line.get("length"), line.get("depth")
        if isinstance(length, int) and isinstance(depth, (int, float)):
            scores.setdefault((length, float(depth)), []).append(line["score"])
    return {place: fmean(values) for place, values in scores.items()}
