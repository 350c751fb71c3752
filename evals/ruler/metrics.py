"""RULER's scores: which of the answers are in the generated text (scripts/eval of NVIDIA/RULER c3f5e3b)."""

import re
from collections.abc import Sequence

from evals.jsonl.records import string_match_all, string_match_part

CONTROL = re.compile("[\x00-\x1f]")

METRICS = {"string_match_all": string_match_all, "string_match_part": string_match_part}


def score(metric: str, prediction: str, outputs: Sequence[str]) -> float:
    """0 to 100, of a prediction without white space around it, whose control characters are line breaks."""
    return 100 * METRICS[metric](CONTROL.sub("\n", prediction.strip()).strip(), outputs)
