"""Results trees as runs leave them, without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.results.finish import finish
from evals.results.record import Record
from evals.results.store import SampleStore, write_json


def line(id: str, score: float = 50.0, **fields: Any) -> dict[str, Any]:
    """A sample's line as the runner makes it."""
    return {
        "id": id,
        "prediction": f"the answer to {id}",
        "score": score,
        "score_words": score / 2,
        "truncated": False,
        "prompt_sha256": f"prompt {id}",
        "realised_budget": 64.0,
        "cache_bytes": 1000,
        "kept": [64, 64],
        "compressed": True,
        "batch": ["corrected/snapkv/64-abcd1234"],
        "timing": {"batch_seconds": 1.5, "shared_by": 3},
        **fields,
    }


def about(method: str = "snapkv", budget: int | None = 64, **fields: Any) -> dict[str, Any]:
    """What `finish` is told of a setting."""
    config = {
        "model": {"name": "tiny"},
        "eval": {"name": "niah", "lengths": [1000]},
        "protocol": {"name": "corrected"},
        "method": {"name": method},
        "budget": budget or 64,
        "observation": {"window": 8},
    }
    content = {"model": "tiny", "eval": "niah", "task": "needle", "protocol": "corrected"}
    return {**content, "method": method, "budget": budget, "dtype": "float32", "config": config, **fields}


def folder(
    results: Path, method: str = "snapkv", budget: int | None = 64, digest: str = "abcd1234", task: str = "needle"
) -> Path:
    name = f"{'none' if budget is None else budget}-{digest}"
    return results / "runs" / "tiny" / "niah" / task / "corrected" / method / name


def setting(
    results: Path,
    scores: Sequence[float] | Mapping[str, float] = (0.0, 100.0),
    method: str = "snapkv",
    budget: int | None = 64,
    digest: str = "abcd1234",
    **fields: Any,
) -> Record:
    """A finished setting with these scores; ids are 0, 1, … where none are given."""
    scores = scores if isinstance(scores, Mapping) else {str(n): score for n, score in enumerate(scores)}
    store = SampleStore(folder(results, method, budget, digest, fields.get("task", "needle")))
    for id, score in scores.items():
        store.append(line(id, score))
    record = finish(store, list(scores), about(method, budget, **fields), results / "runs")
    store.close()
    return record


def version_1(results: Path) -> Path:
    """A setting as the first version left it: no version, no checksums, other configuration; returns its folder."""
    place = folder(results, digest="0123abcd")
    place.mkdir(parents=True)
    text = '{"id": "1", "score": 40.0, "realised_budget": 64.0, "cache_bytes": 10, "compressed": true, '
    text += '"truncated": false, "timing": {"batch_seconds": 1.0}, "batch": ["a", "b"]}\n'
    (place / "samples.jsonl").write_text(text)
    (place / ".lock").write_text("")
    content = {"model": "tiny", "eval": "niah", "task": "needle", "protocol": "corrected", "method": "snapkv"}
    content |= {"budget": 64, "score": 40.0, "interval": [40.0, 40.0], "n": 1, "realised_budget": 64.0}
    content |= {"cache_bytes": 10, "uncompressed": 0, "truncated": 0, "scores": {}, "samples": ["1"]}
    content |= {"config": {"budget": 64, "method": {"name": "snapkv"}}, "timing": {"seconds": 0.5}}
    write_json(place / "summary.json", content)
    return place
