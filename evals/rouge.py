"""ROUGE-1 recall, the score of needle answers."""

from rouge_score.rouge_scorer import RougeScorer

_scorer = RougeScorer(["rouge1"], use_stemmer=True)


def rouge1_recall(reference: str, prediction: str) -> float:
    """Share of the reference's words, stemmed, that the prediction has: 0 to 1 (Google's rouge-score)."""
    return _scorer.score(reference, prediction)["rouge1"].recall
