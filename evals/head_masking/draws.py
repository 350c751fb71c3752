"""Random heads are drawn several times; what counts of a prompt is its mean over the draws."""

from collections.abc import Iterable
from statistics import fmean

from evals.results.schema import Line


def by_prompt(lines: Iterable[Line], field: str = "score") -> dict[str, float]:
    """The mean `field` of each prompt, by its id, over all of its `lines`."""
    values: dict[str, list[float]] = {}
    for line in lines:
        values.setdefault(line["id"], []).append(line[field])
    return {id: fmean(of_prompt) for id, of_prompt in values.items()}
