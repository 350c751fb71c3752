"""Random heads are drawn several times; what counts of a prompt is its mean over the draws."""

from collections.abc import Iterable
from statistics import fmean

from evals.results.pairing import Key
from evals.results.schema import Line


def by_prompt(lines: Iterable[Line], field: str = "score") -> dict[Key, float]:
    """The mean `field` of each prompt over all of its `lines`, which are of the same weights.

    Choices of heads are tasks of different settings; where a tree without texts has no hash, the id tells the prompt.
    """
    values: dict[Key, list[float]] = {}
    for line in lines:
        values.setdefault((line["id"], str(line.get("prompt_sha256"))), []).append(line[field])
    return {sample: fmean(of_prompt) for sample, of_prompt in values.items()}
