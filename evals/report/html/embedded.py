"""Build the JSON data for the page's script: all settings with their origin, and the samples for the browser."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from compresskv.budget import smallest_first
from evals.report.html.reading import Setting, Tree
from evals.results.names import names
from evals.results.record import Record
from evals.results.schema import FIDELITY, Line
from evals.tables.methods import Name

NUMBERS = ("score", "interval", "n", "realised_budget", "cache_bytes", "total_cache_bytes", "uncompressed", "truncated")
"""Summary fields that the list of settings shows."""

ORIGIN = ("dtype", "backend", "model_fingerprint", "schema_version")
"""Summary fields that describe a setting's origin, in addition to configuration and environment."""

OF_SETTING = ("prediction", "new_tokens", "realised_budget", "cache_bytes", "kept", *FIDELITY, "kl_per_token")
"""Sample fields that depend on the setting, in addition to its scores. The other fields depend only on the prompt."""


class _Table:
    """Stores values that many settings share. Each value is stored once, and settings refer to it by index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}
        self._known: dict[int, int] = {}

    def place(self, value: Any) -> int:
        """Return the index of `value`, which must outlive this table: the same object is not compared again."""
        if id(value) not in self._known:
            self._known[id(value)] = self.place_of_equal(value)
        return self._known[id(value)]

    def place_of_equal(self, value: Any) -> int:
        """Return the index of the stored value that equals `value`; store `value` if there is none yet."""
        text = json.dumps(value, sort_keys=True, default=str)
        if text not in self._places:
            self._places[text] = len(self.values)
            self.values.append(value)
        return self._places[text]


def settings_and_samples(tree: Tree) -> dict[str, Any]:
    """Return the page's `settings`, `shared` values and `samples`.

    `settings` refer to values by their index in `shared`. `samples` has one entry per prompt, with the answers of its
    settings.
    """
    shared = _Table()
    ordered = sorted(tree.settings, key=_model_and_eval)
    named: list[Name] = []
    for _, group in groupby(ordered, key=_model_and_eval):
        named += names([setting.record for setting in group])
    rows = [_setting(setting, str(name), shared) for setting, name in zip(ordered, named, strict=True)]
    return {"settings": rows, "shared": shared.values, "samples": _samples(ordered)}


def _model_and_eval(setting: Setting) -> tuple[str, str]:
    return setting.record.model, setting.record.eval


def _setting(setting: Setting, name: str, shared: _Table) -> dict[str, Any]:
    record, summary = setting.record, setting.record.summary or {}
    fields = {key: summary[key] for key in NUMBERS if summary.get(key) is not None}
    scores = dict(summary.get("scores") or {})
    fidelity = {key: value["mean"] for key, value in (summary.get("fidelity") or {}).items()}
    origin = {key: summary[key] for key in ORIGIN if summary.get(key) is not None}
    return {
        "name": name,
        "at": shared.place_of_equal([record.model, record.eval, record.task, record.protocol]),
        "folder": record.path.name,
        "method": record.method,
        **fields,
        **({"more": scores | fidelity} if scores or fidelity else {}),
        "origin": shared.place_of_equal(origin),
        "environment": shared.place(summary["environment"])
        if summary.get("environment")
        else shared.place_of_equal({}),
        "config": shared.place_of_equal([[key, shared.place(value)] for key, value in record.config.items()]),
        "batches": shared.place_of_equal([sorted(batch) for batch in setting.batches[:3]]),
    }


def _samples(ordered: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return the browsed samples by prompt. `by` has one answer per setting, with the setting's index."""
    prompts: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, setting in enumerate(ordered):
        record = setting.record
        for line in setting.browsed:
            at = (record.model, record.eval, record.task, record.protocol, line["id"])
            key = (*at, str(line.get("prompt_sha256")))
            if key not in prompts:
                prompts[key] = {"at": list(at), "prompt": _of_prompt(line), "by": []}
            prompts[key]["by"].append({"setting": place, **_of_setting(line)})
    for sample in prompts.values():
        sample["by"].sort(key=lambda each: _in_order(ordered[each["setting"]].record))
    return list(prompts.values())


def _in_order(record: Record) -> tuple[bool, str, tuple[int, float]]:
    """Return the sort key of an answer: the full cache first, then methods by name and budget."""
    return record.budget is not None, record.method, smallest_first(record.budget)


def _of_setting(line: Line) -> Line:
    return {key: value for key, value in line.items() if key in OF_SETTING or key.startswith("score")}


def _of_prompt(line: Line) -> Line:
    """Return the fields that depend only on the prompt."""
    return {
        key: value
        for key, value in line.items()
        if key != "id" and key not in OF_SETTING and not key.startswith("score") and value is not None
    }
