"""Frequent words: made-up words whose counts follow a zeta distribution. The answer is the three most frequent words.

It makes the same random calls as scripts/data/synthetic/freq_words_extraction.py of NVIDIA/RULER c3f5e3b.
"""

import string
from collections.abc import Iterator
from itertools import count
from random import Random

import numpy as np
from scipy.special import zeta

from evals.ruler.drawing import Drawn, Request, Text, filled, finished

LETTERS = 6
"""Number of letters in a word."""


def generate(request: Request, alpha: float) -> Iterator[Drawn]:
    """Yield samples endlessly. Their vocabulary has one word per 50 tokens."""
    room = request.limit - request.task.max_new_tokens
    vocabulary, step = room // 50, room // 32
    if vocabulary < 4:
        raise request.too_short()
    random = Random(request.seed)

    def tokens(words: list[str], number: int) -> int:
        return request.tokens(_text(request, words, number, alpha).whole)

    words, number = _vocabulary(random, vocabulary, request.seed), room // LETTERS
    while tokens(words, number) < room:
        number += step
    most = number - step
    for index in count():
        words, number = _vocabulary(random, vocabulary, request.seed), most
        while tokens(words, number) > room:
            number -= step
            if number <= 0:
                raise request.too_short()
        text = _text(request, words, number, alpha)
        yield finished(request, index, text, request.size(text.whole))


def _vocabulary(random: Random, size: int, seed: int) -> list[str]:
    """Draw at least `size` different words, ordered by rank. The first word is replaced by noise, "..."."""
    drawn = [_word(random) for _ in range(size)]
    while len(set(drawn)) < size:
        drawn.append(_word(random))
    words = sorted(set(drawn))
    Random(seed).shuffle(words)
    return ["...", *words[1:]]


def _word(random: Random) -> str:
    return "".join(random.choices(string.ascii_lowercase, k=LETTERS))


def _text(request: Request, words: list[str], number: int, alpha: float) -> Text:
    """Return a prompt with about `number` words."""
    shares = number * (np.arange(1, len(words) + 1) ** -alpha) / zeta(alpha)
    listed = [word for word, times in zip(words, shares.astype(int).tolist(), strict=True) for _ in range(times)]
    Random(request.seed).shuffle(listed)
    return filled(request.wording, " ".join(listed), words[1:4])
