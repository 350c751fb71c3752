"""The end of a setting's run: its summary, written where it covers no less than the one before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.results.provenance import environment
from evals.results.record import Record
from evals.results.schema import Line
from evals.results.store import SampleStore, write_json, write_yaml
from evals.results.summary import UNCHECKED, measured, sealed


def finish(store: SampleStore, ids: Sequence[str], about: Mapping[str, Any], runs: Path) -> Record:
    """Summarise the open `store`, which has the samples `ids`, or why they failed; returns the record of these.

    `about` has the fields of a `Summary` that do not follow from lines: the setting's names, identity and `config`.
    The file covers `ids` and whatever the summary before covered; if nothing in it changes, it is left alone, and so
    it is where the folder cannot be written. An unreadable summary is as good as none. It counts the samples that
    failed, of whatever run; where none has a result, there is no summary.

    Raises `UserError` if the file of the samples was removed or changed meanwhile, or the disk refuses.
    """
    store.check()
    before = Record(store.folder, runs).summary or {}
    covered = [id for id in _union(before.get("samples", []), ids, store.lines) if id in store.lines]
    if not covered:
        return Record(store.folder, runs, tuple(ids))
    narrower = set(ids) < set(covered)
    failed = {"failed": len(store.failures)} if store.failures else {}
    summary = sealed({**about, **measured([store.lines[id] for id in covered]), **failed})
    if narrower and "config" in before:
        summary["config"] = before["config"]
    if _content(summary) != _content(before) and store.writable:
        # Where nothing ran now, the samples are those of the environment that is named already.
        known = None if store.appended else before.get("environment")
        summary["environment"] = known or environment()
        write_yaml(store.folder / "config.yaml", dict(summary["config"]))
        write_json(store.folder / "summary.json", summary)
    return Record(store.folder, runs, tuple(ids))


def _union(before: Sequence[str], ids: Sequence[str], lines: Mapping[str, Line]) -> list[str]:
    """What a summary covers: `ids` in their order if they are all, else those of `before` first."""
    known = [id for id in before if id in lines]
    return list(ids) if set(known) <= set(ids) else list(dict.fromkeys([*known, *ids]))


def _content(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a summary another: all but what may differ between equal results."""
    return {key: value for key, value in summary.items() if key not in UNCHECKED or key == "checksum"}
