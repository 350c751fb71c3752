"""Metrics of a prediction with several reference answers, by name."""

from collections.abc import Callable, Sequence

from evals.metrics.longbench import METRICS as OF_ONE_REFERENCE
from evals.metrics.rouge1 import rouge1_recall

Metric = Callable[[str, Sequence[str], Sequence[str] | None], float]
"""A function of (prediction, reference answers, class names) that returns a score from 0 to 1."""


def exact_match(prediction: str, answers: Sequence[str], classes: Sequence[str] | None = None) -> float:
    """Return 1 if the prediction equals one of the answers, ignoring white space around both, else 0."""
    return float(prediction.strip() in {answer.strip() for answer in answers})


def string_match_all(prediction: str, answers: Sequence[str], classes: Sequence[str] | None = None) -> float:
    """Return the share of answers in the prediction, ignoring case (RULER, arXiv 2404.06654, string_match_all)."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str], classes: Sequence[str] | None = None) -> float:
    """Return 1 if an answer is in the prediction, ignoring case, else 0 (RULER's string_match_part, for QA)."""
    return float(any(answer.lower() in prediction.lower() for answer in answers))


def _best(of_one: Callable[[str, str, Sequence[str] | None], float]) -> Metric:
    """Extend a metric of one reference to several: return the best score."""
    return lambda prediction, answers, classes: max(of_one(prediction, answer, classes) for answer in answers)


METRICS: dict[str, Metric] = {
    **{name: _best(metric) for name, metric in OF_ONE_REFERENCE.items()},
    "rouge1_recall": _best(lambda prediction, answer, classes: rouge1_recall(answer, prediction)),
    "exact_match": exact_match,
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
}
"""All metrics by name: LongBench's (`evals.metrics.longbench`), stemmed ROUGE-1 recall, and three that match text."""
