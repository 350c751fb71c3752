"""Write the summary of a setting at the end of its run. It covers at least the samples of the previous summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.files import dumps, loads, write_json, write_yaml
from evals.results.provenance import environment, origin
from evals.results.record import Record
from evals.results.schema import NAMED, Line, experiments_of
from evals.results.store import SampleStore, not_its_own
from evals.results.summary import UNCHECKED, measured, sealed

IDENTITY = (*NAMED, "model_fingerprint", "dtype", "backend", "prompt", "method_in_full")
"""Fields of a summary that are fixed for a folder."""


def finish(store: SampleStore, ids: Sequence[str], about: Mapping[str, Any], runs: Path) -> Record:
    """Summarise the open `store`, in which each sample of `ids` has a result or a failure; return the record of `ids`.

    `about` holds the fields of a `Summary` that cannot be computed from lines: the setting's names, identity and
    `config`. The summary covers `ids` and the samples of the previous summary, and counts the failed samples of all
    runs. It is not written if nothing in it changes, if no sample has a result, or if the folder is read-only. An
    unreadable previous summary is ignored.

    Raises `UserError` if the file of the samples was removed or changed meanwhile, if the previous summary belongs to
    another setting, or if writing fails.
    """
    store.check()
    refuse_foreign(store.folder, about, runs)
    record = Record(store.folder, runs)
    before = record.summary or {}
    covered = _union(before.get("samples", []), ids, store.lines)
    if not covered:
        return Record(store.folder, runs, tuple(ids))
    failed = {"failed": len(store.failures)} if store.failures else {}
    summary = sealed({**about, "folder": record.name, **measured([store.lines[id] for id in covered]), **failed})
    narrower = set(ids) < set(covered)
    config = before["config"] if narrower and "config" in before else summary["config"]
    ran_before = experiments_of(before.get("config") or {})
    named = sorted({*experiments_of(summary["config"]), *ran_before})
    summary["config"] = config | ({"experiment": named[0] if len(named) == 1 else named} if named else {})
    news = _content(summary) != _content(before) or named != ran_before
    if news and store.writable:
        # Pass all lines: the line that holds an environment in full may not be covered.
        summary["environment"] = origin(store.lines.values(), before) or environment()
        write_yaml(store.folder / "config.yaml", dict(summary["config"]))
        write_json(store.folder / "summary.json", summary)
    elif store.writable and before.get("config") not in (None, record.file_config):
        write_yaml(store.folder / "config.yaml", dict(before["config"]))
    return Record(store.folder, runs, tuple(ids))


def refuse_foreign(folder: Path, about: Mapping[str, Any], runs: Path) -> None:
    """Raise `UserError` if the summary in `folder` belongs to a setting that differs from the setting in `about`."""
    record = Record(folder, runs)
    before = record.summary or {}
    named = before.get("folder", record.name)
    if named != record.name:
        raise not_its_own(f"{folder / 'summary.json'}", f"the summary of {named}")
    now = loads(dumps({field: value for field, value in about.items() if field in IDENTITY}))
    for field in IDENTITY:
        if field in before and field in now and not _agree(before[field], now[field]):
            raise not_its_own(f"{folder / 'summary.json'}", f"the summary of a setting with another {field}")


def _agree(one: Any, other: Any) -> bool:
    """Return whether two values are equal in the fields that both have: older versions have fewer."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[field], other[field]) for field in one.keys() & other.keys())
    return bool(one == other)


def _union(before: Sequence[str], ids: Sequence[str], lines: Mapping[str, Line]) -> list[str]:
    """Return the ids in `lines` of `before` and `ids`, in the order of `ids` if they include all others."""
    ordered = ids if {id for id in before if id in lines} <= set(ids) else dict.fromkeys([*before, *ids])
    return [id for id in ordered if id in lines]


def _content(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that decide whether a summary has changed. Equal results may differ in the other fields."""
    return {key: value for key, value in summary.items() if key not in UNCHECKED or key == "checksum"}
