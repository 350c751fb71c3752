"""Choose the number of retrieval heads per layer from needles and from ordinary text.

Methods use this number with `method.scorer.heads=calibrated`; with null, they use the paper's share of the heads.
"""

from collections.abc import Sequence

import numpy as np
import torch

from compresskv.calibration import text_distance
from compresskv.models import LoadedModel
from compresskv.selecting_heads import share_of_the_paper
from compresskv.semantic_heads import SemanticHeadScorer
from evals.haystack import Haystack

CONTINUATION = 48
"""Number of tokens after a stretch of text that are processed with both caches."""

CAPACITIES = (56, 120, 248)
"""Numbers of past tokens that every layer keeps: budgets of 64, 128 and 256 with a window of 8."""

CRITERION = (
    "the largest share of the answer span kept at the calibration budget, mean over prompts and layers, among the "
    "numbers of heads whose KL to the full cache on ordinary text is within one standard error of the lowest"
)


def candidates(counts: Sequence[int], q_heads: int) -> list[int]:
    """Return the numbers of heads to measure, ascending: `counts` up to `q_heads`, and the paper's share."""
    return sorted({share_of_the_paper(q_heads), *(count for count in counts if count <= q_heads)})


def stretches(model: LoadedModel, haystack: Haystack, tokens: int, count: int) -> dict[str, torch.Tensor]:
    """Cut stretches of text from the end of `haystack`, by id: ids [tokens + CONTINUATION] each.

    Returns at most `count` stretches, without overlap. A text shorter than one stretch is repeated.
    """
    ids = model.tokenizer(haystack.text, add_special_tokens=False).input_ids
    size = tokens + CONTINUATION
    while len(ids) < size:
        ids = ids + ids
    starts = range(len(ids) - size, -1, -size)[:count]
    return {f"text-L{tokens}-{number}": torch.tensor(ids[start : start + size]) for number, start in enumerate(starts)}


def observe(model: LoadedModel, stretch: torch.Tensor, scorers: Sequence[SemanticHeadScorer]) -> list[float]:
    """Measure the KL to the full cache on one of the `stretches`, in nats per token, for each scorer."""
    ids, continuation = stretch[:-CONTINUATION].to(model.device), stretch[-CONTINUATION:].tolist()
    return text_distance.observe(model.model, ids, continuation, scorers, CAPACITIES)


def choose(counts: Sequence[int], coverage: Sequence[float], kl: Sequence[Sequence[float]]) -> int:
    """Return the index in `counts` of the number of heads to use, by `CRITERION`; ties go to fewer heads.

    `coverage` [counts]: mean over prompts. `kl` [texts][counts]. Without texts, only the coverage matters.
    """
    places = list(range(len(counts)))
    if kl:
        distances = np.array(kl)
        best = int(distances.mean(0).argmin())
        excess = distances - distances[:, [best]]
        errors = excess.std(0, ddof=1) / len(kl) ** 0.5 if len(kl) > 1 else np.zeros(len(counts))
        places = [place for place in places if excess[:, place].mean() <= errors[place]]
    return max(places, key=lambda place: (coverage[place], -counts[place]))
