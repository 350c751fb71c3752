"""ROUGE-1 recall, the score of needle answers."""

from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imported here, since it takes a second

    return RougeScorer(["rouge1"], use_stemmer=True)


def rouge1_recall(reference: str, prediction: str) -> float:
    """Return the share of the reference's stemmed words that the prediction contains, 0 to 1 (Google's rouge-score)."""
    return _scorer().score(reference, prediction)["rouge1"].recall


def sees(reference: str) -> bool:
    """Return whether the recall counts most of the reference: rouge-score keeps only the letters a to z and digits."""
    content = [character for character in reference if character.isalnum()]
    return 2 * sum(character.isascii() for character in content) > len(content)
