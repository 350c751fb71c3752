"""Mean scores by prompt length and needle depth, for the figure and for the page."""

from collections.abc import Sequence
from statistics import fmean

from evals.results.record import Record, covered_lines


def means(records: Sequence[Record]) -> dict[tuple[int, float], float]:
    """Return the mean score by prompt length and needle depth."""
    scores: dict[tuple[int, float], list[float]] = {}
    for line in covered_lines(records):
        length, depth = line.get("length"), line.get("depth")
        if isinstance(length, int) and isinstance(depth, (int, float)):
            scores.setdefault((length, float(depth)), []).append(line["score"])
    return {place: fmean(values) for place, values in scores.items()}
