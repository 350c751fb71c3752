"""Build the JSON data for the page's script: all settings with their origin, and the samples for the browser."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from compresskv.budget import smallest_first
from evals.report.html.reading import Setting, Shared, Tree
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import FIDELITY

NUMBERS = ("score", "interval", "n", "realised_budget", "cache_bytes", "total_cache_bytes", "uncompressed", "truncated")
"""Summary fields that the list of settings shows."""

ORIGIN = ("dtype", "backend", "model_fingerprint", "schema_version")
"""Summary fields that describe a setting's origin, in addition to configuration and environment."""

OF_SETTING = ("prediction", "new_tokens", "realised_budget", "cache_bytes", "kept", *FIDELITY, "kl_per_token")
"""Sample fields that depend on the setting, in addition to its scores. The other fields depend only on the prompt."""


def settings_and_samples(tree: Tree) -> dict[str, Any]:
    """Return the page's `settings`, `shared` values and `samples`.

    `settings` refer to values by their index in `shared`. `samples` has one entry per prompt, with the answers of its
    settings.
    """
    shared = Shared()
    ordered = sorted(tree.settings, key=_model_and_eval)
    rows: list[dict[str, Any]] = []
    for _, group in groupby(ordered, key=_model_and_eval):
        settings = list(group)
        named = names([setting.record for setting in settings])
        rows += [_row(setting, str(name), shared) for setting, name in zip(settings, named, strict=True)]
    return {"settings": rows, "shared": shared.values, "samples": _samples(ordered)}


def _model_and_eval(setting: Setting) -> tuple[str, str]:
    return setting.record.model, setting.record.eval


def _row(setting: Setting, name: str, shared: Shared) -> dict[str, Any]:
    record, summary = setting.record, setting.record.summary or {}
    scores = dict(summary.get("scores") or {})
    fidelity = {key: value["mean"] for key, value in (summary.get("fidelity") or {}).items()}
    return {
        "name": name,
        "at": shared.place([record.model, record.eval, record.task, record.protocol]),
        "folder": record.path.name,
        "method": record.method,
        **{key: summary[key] for key in NUMBERS if summary.get(key) is not None},
        **({"more": scores | fidelity} if scores or fidelity else {}),
        "origin": shared.place({key: summary[key] for key in ORIGIN if summary.get(key) is not None}),
        "environment": shared.place(summary.get("environment") or {}),
        "config": shared.place([[key, shared.place(value)] for key, value in record.config.items()]),
        "batches": shared.place([sorted(batch) for batch in setting.batches[:3]]),
    }


def _samples(ordered: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return the browsed samples by prompt. `by` has one answer per setting, with the setting's index."""
    prompts: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, setting in enumerate(ordered):
        record = setting.record
        for line in setting.browsed:
            at = (record.model, record.eval, record.task, record.protocol, line["id"])
            answer = {name: value for name, value in line.items() if name in OF_SETTING or name.startswith("score")}
            asked = {name: value for name, value in line.items() if name not in ("id", *answer) and value is not None}
            sample = prompts.setdefault(
                (*at, str(line.get("prompt_sha256"))), {"at": list(at), "prompt": asked, "by": []}
            )
            sample["by"].append({"setting": place, **answer})
    for sample in prompts.values():
        sample["by"].sort(key=lambda each: _in_order(ordered[each["setting"]].record))
    return list(prompts.values())


def _in_order(record: Record) -> tuple[bool, str, tuple[int, float]]:
    """Return the sort key of an answer: the full cache first, then methods by name and budget."""
    return record.budget is not None, record.method, smallest_first(record.budget)
