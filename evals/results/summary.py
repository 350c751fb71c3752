"""Compute the summary fields that can be derived from sample lines, for writing, narrowing and verifying summaries."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evals.results.schema import FIDELITY, SCHEMA_VERSION, Line, checksum
from evals.tables import statistics

UNCHECKED = ("checksum", "config", "environment", "timing")
"""Fields that a summary's checksum does not cover, so that equal results have equal checksums."""


def measured(lines: Sequence[Line], version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Compute the fields of a `Summary` of `version` from `lines`, at least one, each with a `score`.

    Fields that some lines lack, for example because another version wrote them, are left out. The fidelity is the mean
    over the lines with fidelity.
    """
    scores = [line["score"] for line in lines]
    interval = _rounded(statistics.interval(scores), 2)
    if interval is None and version == 1:
        interval = [round(scores[0], 2)] * 2
    content: dict[str, Any] = {"score": round(float(np.mean(scores)), 2), "interval": interval, "n": len(lines)}
    shared = set(lines[0]).intersection(*lines)
    for name, digits in (("realised_budget", 3), ("cache_bytes", None), ("total_cache_bytes", None)):
        if name in shared:
            content[name] = round(_mean([line[name] for line in lines]), digits)
    if "compressed" in shared:
        content["uncompressed"] = sum(not line["compressed"] for line in lines)
    if "truncated" in shared:
        content["truncated"] = sum(bool(line["truncated"]) for line in lines)
    if "official" in shared and (altered := sum(not line["official"] for line in lines)):
        content["unofficial"] = altered
    further = [name for name in lines[0] if name.startswith("score_") and name in shared]
    content["scores"] = {name: round(_mean([line[name] for line in lines]), 2) for name in further}
    for name in FIDELITY:
        if values := [line[name] for line in lines if line.get(name) is not None]:
            bounds = _rounded(statistics.interval(values), 5)
            mean = {"mean": round(_mean(values), 5), "interval": bounds, "n": len(values)}
            content.setdefault("fidelity", {})[name] = mean
    content["samples"] = [line["id"] for line in lines]
    if "timing" in shared:
        content["timing"] = {"seconds": round(sum(map(seconds, lines)), 2)}
    return content


def seconds(line: Line) -> float:
    """Return the time of a sample: the time of its prompt divided by the number of settings that shared it."""
    timing = line["timing"]
    return timing["batch_seconds"] / (timing.get("shared_by") or len(line.get("batch") or [None]))


def sealed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `Summary` with its version and checksum, ready to write."""
    content = {"schema_version": SCHEMA_VERSION, **summary}
    return {**content, "checksum": checksum(content, UNCHECKED)}


def disagreements(summary: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    """Yield a description of each field of a summary that disagrees with the lines that the summary covers."""
    version = summary.get("schema_version", 1)
    try:
        recomputed = measured(lines, version)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        yield f"its samples have a field of the wrong kind ({error})"
        return
    for field, value in recomputed.items():
        # Older versions lack fields; newer versions may compute them differently.
        if field in summary and summary[field] != value and version <= SCHEMA_VERSION:
            yield f"the summary says {_shown(summary[field])} for {field}, its samples {_shown(value)}"
    if "checksum" in summary and summary["checksum"] != checksum(summary, UNCHECKED):
        yield "the summary was changed after it was written: its checksum does not match"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(bounds: tuple[float, float] | None, digits: int) -> list[float] | None:
    return None if bounds is None else [round(bound, digits) for bound in bounds]
