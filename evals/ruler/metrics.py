"""RULER's metrics: whether the generated text contains the answers (scripts/eval of NVIDIA/RULER c3f5e3b)."""

import re
from collections.abc import Sequence

from evals.jsonl.records import string_match_all, string_match_part

CONTROL = re.compile("[\x00-\x1f]")

METRICS = {"string_match_all": string_match_all, "string_match_part": string_match_part}


def score(metric: str, prediction: str, outputs: Sequence[str]) -> float:
    """Score a prediction, 0 to 100, after stripping white space and replacing control characters by line breaks."""
    return 100 * METRICS[metric](CONTROL.sub("\n", prediction.strip()).strip(), outputs)
