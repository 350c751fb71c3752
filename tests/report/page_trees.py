"""Results trees for the page, as runs leave them, written fast: no model, no lock, no sync to the disk."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evals.longbench.tasks import ENGLISH
from evals.results.lines import encode
from evals.results.schema import NAMED
from evals.results.summary import measured, sealed

LAYERS = 6
METHODS = {"full": None, "streaming_llm": 0.3, "snapkv": 0.6, "compresskv": 0.85}
"""With the share of the full cache's score that each reaches at the smallest budget."""

ENVIRONMENT = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {"machine": "x86_64", "cpu": "a processor", "cpu_threads": 2},
}


def setting(
    results: Path,
    lines: Iterable[Mapping[str, Any]],
    method: str = "snapkv",
    budget: int | None = 64,
    model: str = "tiny",
    eval: str = "niah",
    task: str = "needle",
    protocol: str = "corrected",
    digest: str = "abcd1234",
    **of_eval: Any,
) -> Path:
    """Write a finished setting; returns its folder."""
    place = dict(zip(NAMED, (model, eval, task, protocol, method, budget), strict=True))
    folder = results.joinpath("runs", model, eval, task, protocol, method)
    folder /= f"{'none' if budget is None else budget}-{digest}"
    folder.mkdir(parents=True)
    contents = [dict(line) for line in lines]
    (folder / "samples.jsonl").write_bytes(b"".join(map(encode, contents)))
    config = {
        "model": {"name": model, "dtype": "float32"},
        "method": {"name": method, "scorer": {"_target_": f"baselines.{method}.scorer"}},
        "eval": {"name": eval, **of_eval},
        "protocol": {"name": protocol},
        "budget": budget or 64,
        "observation": {"window": 8, "kernel": 5, "pooling": "average"},
    }
    about = {**place, "dtype": "float32", "backend": "sdpa", "model_fingerprint": "f00d", "environment": ENVIRONMENT}
    prompt = {"question": "What is the best thing to do?", "answer": "eat a sandwich"} if eval == "niah" else {}
    summary = sealed({**about, **measured(contents), "prompt": prompt, "config": config})
    (folder / "summary.json").write_text(json.dumps(summary, ensure_ascii=False))
    (folder / "config.yaml").write_text("budget: 64\n")
    return folder


def line(id: str, score: float, budget: int | None, **fields: Any) -> dict[str, Any]:
    kept = (
        [1000] * LAYERS if budget is None else [max(0, budget + 8 * (layer - LAYERS // 2)) for layer in range(LAYERS)]
    )
    return {
        "id": id,
        "prediction": f"the answer to {id}",
        "score": round(score, 4),
        "score_words": round(score / 2, 4),
        "prompt_tokens": 1000,
        "truncated": False,
        "prompt_tail": f"the end of the prompt of {id}",
        "prompt_sha256": f"{hash(id) & 0xFFFF:016x}",
        "new_tokens": 12,
        "realised_budget": float(sum(kept) / LAYERS),
        "cache_bytes": sum(kept) * 128,
        "kept": kept,
        "compressed": budget is not None,
        "batch": ["corrected/snapkv/64-abcd1234", "corrected/compresskv/64-abcd1234"],
        "timing": {"batch_seconds": 1.5, "shared_by": 2},
        **fields,
    }


def needles(
    results: Path, model: str = "tiny", lengths=(1000, 2000), depths=5, budgets=(64, 128), **place: Any
) -> None:
    """A sweep on needles: every method at every budget, with KL."""
    random = np.random.default_rng(0)
    noise = random.random((len(lengths), depths))
    for method, share in METHODS.items():
        for budget in budgets if share is not None else (None,):
            reach = 1.0 if share is None else min(1.0, share + 0.1 * np.log2(budget / min(budgets)))
            lines = []
            for across, length in enumerate(lengths):
                for down, depth in enumerate(np.linspace(0, 100, depths)):
                    score = 100.0 * reach * (0.8 + 0.2 * float(noise[across, down]))
                    mean = 2 * (1 - reach)
                    kl = {"kl": round(mean, 6), "agreement": round(reach, 6), "reference_nll": 1.5}
                    kl["kl_per_token"] = [round(mean / 2, 4), round(mean * 1.5, 4)]
                    fields = {"length": length, "depth": float(depth), **kl}
                    lines.append(line(f"L{length}-D{depth:g}-N0", score, budget, **fields))
            setting(results, lines, method, budget, model, **place)


def longbench(results: Path, model: str = "tiny", tasks=ENGLISH[:3], n=4, budgets=(64,), methods=METHODS) -> None:
    """A sweep on LongBench tasks whose rows are none of the official ones."""
    random = np.random.default_rng(1)
    for task in tasks:
        noise = random.random(n)
        for method, share in methods.items():
            for budget in budgets if share is not None else (None,):
                reach = 1.0 if share is None else share
                lines = [
                    line(str(row), 60 * reach + 20 * float(noise[row]), budget, answers=["so"], length=900 + row)
                    for row in range(n)
                ]
                setting(results, lines, method, budget, model, "longbench", task)


def efficiency(results: Path, model: str = "tiny") -> None:
    """One measurement of two settings at two lengths, and in two pools, of which one holds no full cache."""
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
    about = {"model": model, "dtype": "float32", "backend": "sdpa", "new_tokens": 16, "rounds": 2}
    folder = results / "efficiency" / model / "20260101-000000"
    folder.mkdir(parents=True)
    content = {**about, "environment": ENVIRONMENT, "rows": rows, "concurrency": pools}
    (folder / "efficiency.json").write_text(json.dumps(content))
