"""Build results trees as runs do, without a model and without syncing files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from compresskv.methods import method_config
from evals.longbench.tasks import ENGLISH
from evals.report.selection import settings_of
from evals.results.finish import finish
from evals.results.lines import owner
from evals.results.record import Record
from evals.results.schema import NAMED
from evals.results.store import SampleStore, write_json

LAYERS = 6
SHARES = {"full": None, "streaming_llm": 0.3, "snapkv": 0.6, "compresskv": 0.85}
"""Methods, and the share of the full cache's score that each reaches at the smallest budget."""

ENVIRONMENT = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {"machine": "x86_64", "cpu": "a processor", "cpu_threads": 2},
}


def nodes(experiment: str) -> dict[str, dict[str, Any]]:
    """Return the method nodes of an experiment, by the method's name in results."""
    return {method_config(config["method"]).name: config["method"] for config in settings_of(experiment, None)}


def line(id: str, score: float = 50.0, budget: int | None = 64, **fields: Any) -> dict[str, Any]:
    """Return a sample line as a run writes it."""
    kept = (
        [1000] * LAYERS if budget is None else [max(0, budget + 8 * (layer - LAYERS // 2)) for layer in range(LAYERS)]
    )
    return {
        "id": id,
        "prediction": f"the answer to {id}",
        "score": score,
        "score_words": score / 2,
        "prompt_tokens": 1000,
        "truncated": False,
        "prompt_tail": f"the end of the prompt of {id}",
        "prompt_sha256": f"prompt {id}",
        "new_tokens": 12,
        "realised_budget": float(sum(kept) / LAYERS),
        "cache_bytes": sum(kept) * 128,
        "kept": kept,
        "compressed": budget is not None,
        "batch": ["corrected/snapkv/64-abcd1234", "corrected/compresskv/64-abcd1234"],
        "timing": {"batch_seconds": 1.5, "shared_by": 3},
        **fields,
    }


def cells(scores: Sequence[float], **fields: Any) -> list[dict[str, Any]]:
    """Return lines with these scores, alternately of two prompt lengths."""
    lines = []
    for place, score in enumerate(scores):
        length, depth = (1000, 2000)[place % 2], 50.0 * (place // 2)
        lines.append(line(f"L{length}-D{depth:g}-N0", score, length=length, depth=depth, **fields))
    return lines


def about(method: str = "snapkv", budget: int | None = 64, **fields: Any) -> dict[str, Any]:
    """Return the description of a setting for `finish`. `of_eval`, `of_config`: additional configuration."""
    content = {"model": "tiny", "eval": "niah", "task": "needle", "protocol": "corrected"} | fields
    of_eval, of_config = content.pop("of_eval", {}), content.pop("of_config", {})
    config = {
        "model": {"name": content["model"]},
        "eval": {"name": content["eval"], **of_eval},
        "protocol": {"name": content["protocol"]},
        "method": {"name": method},
        "budget": budget or 64,
        "observation": {"window": 8, "kernel": 5, "pooling": "average"},
        **of_config,
    }
    return {"method": method, "budget": budget, "dtype": "float32", "config": config, **content}


def folder(
    results: Path, method: str = "snapkv", budget: int | None = 64, digest: str = "abcd1234", **fields: Any
) -> Path:
    content = about(method, budget, **fields)
    place = results.joinpath("runs", *(content[name] for name in NAMED[:-1]))
    return place / f"{'none' if budget is None else budget}-{digest}"


def setting(
    results: Path,
    lines: Sequence[Any] | Mapping[str, float] = (0.0, 100.0),
    method: str = "snapkv",
    budget: int | None = 64,
    digest: str = "abcd1234",
    experiment: str = "",
    node: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """Write a finished setting with these lines or scores. `node`: its method, by default the `experiment`'s.

    With a `model_fingerprint`, its lines name the setting and the weights, as in a run. Other `fields`: see `about`.
    """
    budget = None if method == "full" else budget
    if not isinstance(lines, Mapping) and not all(isinstance(each, dict) for each in lines):
        lines = {str(number): score for number, score in enumerate(lines)}
    if isinstance(lines, Mapping):
        lines = [line(id, score, budget) for id, score in lines.items()]
    if node := node or (nodes(experiment)[method] if experiment else None):
        fields["of_config"] = {"method": node} | fields.get("of_config", {})
    here = mock.patch("evals.results.store.environment", return_value={**ENVIRONMENT, "key": "abc"})
    with mock.patch("os.fsync"), here:
        place, runs = folder(results, method, budget, digest, **fields), results / "runs"
        weights = fields.get("model_fingerprint")
        store = SampleStore(place, owner(place, runs, weights) if weights else None)
        for each in lines:
            store.append(each)
        content = about(method, budget, **fields)
        record = finish(store, [each["id"] for each in lines], content, runs)
        store.close()
    return Record(record.path, record.runs)


def scored(results: Path, scores: Mapping[str, Sequence[float]], experiment: str = "fig5_niah", **fields: Any) -> None:
    """Write a setting of an experiment for each method, with these scores of `cells`."""
    for method, values in scores.items():
        setting(results, cells(values), method, experiment=experiment, **fields)


def unfinished(results: Path, method: str = "snapkv", ids: Sequence[str] = ("1",), **fields: Any) -> Path:
    """Write a setting without a summary, as if killed after these samples; returns its folder."""
    store = SampleStore(folder(results, method, **fields))
    for id in ids:
        store.append(line(id))
    store.close()
    return store.folder


def needles(
    results: Path, model: str = "tiny", lengths=(1000, 2000), depths=5, budgets=(64, 128), **place: Any
) -> None:
    """Write a sweep on needles: every method at every budget, with KL."""
    noise = np.random.default_rng(0).random((len(lengths), depths))
    for method, share in SHARES.items():
        for budget in budgets if share is not None else (None,):
            reach = 1.0 if share is None else min(1.0, share + 0.1 * np.log2(budget / min(budgets)))
            lines = []
            for across, length in enumerate(lengths):
                for down, depth in enumerate(np.linspace(0, 100, depths)):
                    score = round(100.0 * reach * (0.8 + 0.2 * float(noise[across, down])), 4)
                    mean = 2 * (1 - reach)
                    kl = {"kl": round(mean, 6), "agreement": round(reach, 6), "reference_nll": 1.5}
                    kl["kl_per_token"] = [round(mean / 2, 4), round(mean * 1.5, 4)]
                    lines.append(
                        line(f"L{length}-D{depth:g}-N0", score, budget, length=length, depth=float(depth), **kl)
                    )
            prompt = {"question": "What is the best thing to do?", "answer": "eat a sandwich"}
            setting(results, lines, method, budget, model=model, prompt=prompt, **place)


def longbench(results: Path, model: str = "tiny", tasks=ENGLISH[:3], n=4, budgets=(64,), methods=SHARES) -> None:
    """Write a sweep on LongBench tasks with rows that are not official."""
    random = np.random.default_rng(1)
    for task in tasks:
        noise = random.random(n)
        for method, share in methods.items():
            for budget in budgets if share is not None else (None,):
                scores = [round(60 * (1.0 if share is None else share) + 20 * float(noise[row]), 4) for row in range(n)]
                lines = [
                    line(str(row), score, budget, answers=["so"], length=900 + row) for row, score in enumerate(scores)
                ]
                setting(results, lines, method, budget, model=model, eval="longbench", task=task)


def longbench_task(
    results: Path, task: str, method: str = "snapkv", scores: Sequence[float] = (50.0,), **fields: Any
) -> Record:
    """Write a finished setting on a LongBench task, with rows that are not official."""
    budget = fields.pop("budget", 64)
    lines = [line(str(row), score, budget, answers=["a"], length=1) for row, score in enumerate(scores)]
    return setting(results, lines, method, budget, eval="longbench", task=task, **fields)


def efficiency(results: Path, model: str = "tiny") -> Path:
    """Write a measurement of two settings at two lengths and in two pools; the full cache does not fit one pool."""
    rows, pools = [], []
    for length in (1000, 2000):
        for name, factor in (("full", 1.0), ("compresskv 64", 0.5)):
            values = {"first_token_s": length / 1000, "decode_ms": 20 * factor, "total_s": 3 * factor}
            values |= {"cache_bytes": 1000 * length * factor, "peak_bytes": 1e8}
            ratios = {f"{field}_ratio": factor for field in ("decode_ms", "total_s", "cache_bytes")}
            rows.append({"setting": name, "length": length, "launch_bound": None, **values, **ratios})
            for pool, sequences in ((64, int(name != "full")), (256, 2)):
                fits = {"first_token_s": 1.0, "all_first_tokens_s": 2.0, "tokens_per_s": 90 / factor}
                fits |= {"tokens_per_s_spread": [80 / factor, 99 / factor], "tokens_per_s_ratio": 1 / factor}
                pools.append({"setting": name, "length": length, "pool_mb": pool, "sequences": sequences})
                pools[-1] |= dict.fromkeys(fits) if not sequences else fits
                pools[-1] |= {"sequence_bytes": 9e7 * factor, "tokens_per_s_alone": 50.0, "peak_bytes": None}
                pools[-1]["launch_bound"] = None
    content = {"model": model, "dtype": "float32", "backend": "sdpa", "new_tokens": 16, "rounds": 2}
    path = results / "efficiency" / model / "20260101-000000" / "efficiency.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**content, "environment": ENVIRONMENT, "rows": rows, "concurrency": pools}))
    return path


def version_1(results: Path) -> Path:
    """Write a setting as the first version did, without version and checksums; returns its folder.

    Its configuration also differs from the current format.
    """
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
