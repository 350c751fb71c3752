"""ROUGE-1 recall, the score of needle answers."""

from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, which a refused command line need not wait

    return RougeScorer(["rouge1"], use_stemmer=True)


def rouge1_recall(reference: str, prediction: str) -> float:
    """Share of the reference's words, stemmed, that the prediction has: 0 to 1 (Google's rouge-score)."""
    return _scorer().score(reference, prediction)["rouge1"].recall


def sees(reference: str) -> bool:
    """Whether the recall counts most of the reference: rouge-score drops all but the letters a to z and digits."""
    content = [character for character in reference if character.isalnum()]
    return 2 * sum(character.isascii() for character in content) > len(content)
