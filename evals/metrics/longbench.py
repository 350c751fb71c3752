"""The LongBench metrics, with the same values as the official metrics.py (THUDM/LongBench, commit 2e00731).

Every metric takes (prediction, reference, class names) and returns 0 to 1.
"""

import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache, lru_cache

from compresskv.errors import UserError
from evals.metrics.rouge_l import RougeL, rouge_l

# Punctuation that the official Chinese normalisation removes in addition to ASCII. It lacks "《" and "〈".
FULL_WIDTH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"
    "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_DROP_ASCII = str.maketrans("", "", string.punctuation)
_DROP_ASCII_AND_FULL_WIDTH = str.maketrans("", "", string.punctuation + FULL_WIDTH_PUNCTUATION)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBERS = re.compile(r"\d+")


def qa_f1(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Compute multiset F1 of words, lowercased, without ASCII punctuation and the words a, an, the (SQuAD 1.1)."""
    return _multiset_f1(_english_words(prediction), _english_words(reference))


def qa_f1_zh(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Compute multiset F1 of jieba's words, lowercased, without white space, ASCII and full-width punctuation."""
    return _multiset_f1(_chinese_words(prediction), _chinese_words(reference))


def classification(prediction: str, reference: str, classes: Sequence[str] | None) -> float:
    """Return 1 / number of class names found in the prediction if the reference is among these names, else 0.

    Found names that are proper substrings of the reference do not count. The official evaluation removes these names
    from the list while it iterates over the list. It therefore skips the name after each removed name, and keeps the
    skipped name. This function does the same.
    """
    if classes is None:
        raise UserError("all_classes", "give the list of class names of the classification task", value=None)
    present = [name for name in classes if name in prediction]
    position = 0
    while position < len(present):
        name = present[position]
        if name != reference and name in reference:
            present.remove(name)
        position += 1
    return 1.0 / len(present) if reference in present else 0.0


def count(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Return the share of the numbers in the prediction that equal the reference; 0 if it has no number."""
    numbers = _NUMBERS.findall(prediction)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Compute `count` for the number after "Paragraph " in the reference."""
    return count(prediction, _paragraph("Paragraph ", reference))


def retrieval_zh(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Compute `count` for the number after "段落" in the reference."""
    return count(prediction, _paragraph("段落", reference))


def code_similarity(prediction: str, reference: str, classes: Sequence[str] | None = None) -> float:
    """Compute the edit similarity of the first line of code, that has no backtick, "#" or "//"; "" if no line
    qualifies."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if "`" not in line and "#" not in line and "//" not in line), "")
    return ratio(line, reference) / 100


def ratio(a: str, b: str) -> int:
    """Compute `fuzzywuzzy.fuzz.ratio` (0.18.0) in its pure-Python form: 100 x difflib's ratio, rounded to an integer.

    With python-Levenshtein, fuzzywuzzy can give other values, as thefuzz and rapidfuzz do.
    """
    if a == b:
        return 100
    if not a or not b:
        return 0
    return round(100 * SequenceMatcher(None, a, b).ratio())


def _multiset_f1(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    same = sum((Counter(prediction) & Counter(reference)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(reference)
    return 2 * precision * recall / (precision + recall)


def _paragraph(prefix: str, reference: str) -> str:
    number = re.search(prefix + r"(\d+)", reference)
    if number is None:
        raise UserError(
            "answers",
            "write it in",
            value=reference,
            why=f"the answer of a retrieval task does not contain {prefix!r} and a number",
        )
    return number[1]


@lru_cache(maxsize=1024)
def _english_words(text: str) -> tuple[str, ...]:
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_DROP_ASCII)).split())


@lru_cache(maxsize=1024)
def _chinese_words(text: str) -> tuple[str, ...]:
    words = ("".join(word.lower().translate(_DROP_ASCII_AND_FULL_WIDTH).split()) for word in _segment(text))
    return tuple(word for word in words if word)


@lru_cache(maxsize=1024)
def _segment(text: str) -> tuple[str, ...]:
    return tuple(_jieba().cut(text, cut_all=False))


@cache
def _jieba():
    """Return a jieba segmenter with a separate dictionary: words added to jieba's global one would change scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba imports pkg_resources
        import jieba
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()


def _rouge_l_zh(prediction: str, reference: str) -> RougeL:
    """Compute ROUGE-L of jieba's words (accurate mode) joined by spaces."""
    return rouge_l(" ".join(_segment(prediction)), " ".join(_segment(reference)))


ROUGE = {"rouge_l": rouge_l, "rouge_l_zh": _rouge_l_zh}

METRICS: dict[str, Callable[[str, str, Sequence[str] | None], float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge_l": lambda prediction, reference, classes: rouge_l(prediction, reference).f,
    "rouge_l_zh": lambda prediction, reference, classes: _rouge_l_zh(prediction, reference).f,
    "classification": classification,
    "count": count,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "code_similarity": code_similarity,
}
