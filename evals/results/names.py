"""Name settings by their method, budget and protocol, and by the values that distinguish them from other settings."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compresskv.errors import UserError
from compresskv.methods import named_method
from evals.results.record import Record
from evals.tables.methods import Name, named

IMMATERIAL = ("paths", "logger", "eval", "memory", "experiment", "eviction")
"""Parts of a configuration that change no prediction or only choose samples. The relevant part of `eval` is in `prompt`
of the summary, and that of `eviction` in `_schedule`."""


NONE = "null"
"""Text of a value that is not set."""

Path = tuple[str, ...]

Leaves = dict[Path, str]
"""The scalar values of a configuration as text, by path."""


def names(records: Sequence[Record], over_budgets: bool = False) -> list[Name]:
    """Return the name of each record, such as `SnapKV 64`.

    Records that would share a name get a variant with the values in which they differ. Different settings have
    different names across all tasks. If no short value differs, the variant ends with a hash in brackets, which you
    must escape in markup. `over_budgets`: records also get a variant if other budgets of their method differ in more
    than the budget.
    """
    marked = len({record.protocol for record in records}) > 1
    found = [
        Name(named(record.method), record.budget, record.protocol, marked=marked, when=record.when)
        for record in records
    ]
    identities = [_setting(record) for record in records]
    if over_budgets:
        identities = [{key: value for key, value in each.items() if key != "budget"} for each in identities]
    alike: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    for place, record in enumerate(records):
        name = replace(found[place], budget=None) if over_budgets else found[place]
        settings = alike.setdefault((record.model, record.eval, name), {})
        settings.setdefault(repr(sorted(_leaves(identities[place]))), []).append(place)
    for settings in alike.values():
        firsts = [records[places[0]] for places in settings.values()]
        hashes = [hashlib.sha256(setting.encode()).hexdigest()[:8] for setting in settings]
        of_settings = _suffixes(firsts, [identities[places[0]] for places in settings.values()], hashes)
        for places, suffix in zip(settings.values(), of_settings, strict=True):
            by_task: dict[tuple[str, Any], list[int]] = {}
            for place in places:
                by_task.setdefault((records[place].task, records[place].budget), []).append(place)
            for of_task in by_task.values():
                same = [records[place] for place in of_task]
                prompts = [{"prompt": (record.summary or {}).get("prompt")} for record in same]
                within = _suffixes(same, prompts, [record.digest for record in same])
                for place, of_prompt in zip(of_task, within, strict=True):
                    found[place] = replace(found[place], variant=f"{suffix} {of_prompt}".strip())
    return found


def _suffixes(records: Sequence[Record], identities: Sequence[Mapping[str, Any]], hashes: Sequence[str]) -> list[str]:
    """Return a suffix for each record that distinguishes it from the others, such as `heads=3`.

    The record's hash is appended if the suffix is not unique. Default values are left out: those of the method in
    conf/method, or null if no record has the method's default.
    """
    if len(records) == 1:
        return [""]
    described = [dict(_leaves(identity)) for identity in identities]
    differing = _differing(described)
    usual = _usual(records[0], described, differing)
    named = [[path for path in differing if leaves.get(path) != usual.get(path)] for leaves in described]
    suffixes = [_text(leaves, paths) for leaves, paths in zip(described, named, strict=True)]
    return [
        suffix if (suffix or not paths) and suffixes.count(suffix) == 1 else f"{suffix} [{digest}]".strip()
        for suffix, paths, digest in zip(suffixes, named, hashes, strict=True)
    ]


def _usual(record: Record, described: Sequence[Leaves], differing: Sequence[Path]) -> Leaves:
    """Return the default values of the paths in `differing`."""
    own = dict(_leaves(_own(record)))
    usual = {}
    for path in differing:
        values = {leaves.get(path) for leaves in described}
        default = next((value for value in (own.get(path), NONE) if value is not None and value in values), None)
        if default is not None:
            usual[path] = default
    return usual


def _own(record: Record) -> dict[str, Any]:
    """Return the method's parameters in conf/method, in the form of a configuration; empty if it is not there."""
    node = record.config.get("method")
    try:
        method = named_method(str(node.get("name"))) if isinstance(node, Mapping) else None
    except UserError:
        method = None
    parts = {"scorer": method.scorer, "allocator": method.allocator} if method else {}
    return {"method": {name: part.parameters for name, part in parts.items() if part}}


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the values of each configuration that differ, such as `window=16 kernel=7`; long values are left out."""
    described = [dict(_leaves(config)) for config in configs]
    return [_text(leaves, _differing(described)) for leaves in described]


def _differing(described: Sequence[Leaves]) -> list[Path]:
    paths = list(dict.fromkeys(path for leaves in described for path in leaves))
    return [path for path in paths if len({leaves.get(path) for leaves in described}) > 1]


def _text(leaves: Leaves, paths: Sequence[Path]) -> str:
    parts = dict.fromkeys(f"{path[-1]}={leaves[path]}" for path in paths if path in leaves)
    return " ".join(part for part in parts if len(part) <= 40)


def _setting(record: Record) -> dict[str, Any]:
    """Return the part of a setting's configuration that is the same in all its tasks."""
    config = {key: value for key, value in record.config.items() if key not in IMMATERIAL}
    if isinstance(model := config.get("model"), Mapping):  # `evals` holds defaults of `eval`
        config["model"] = {key: value for key, value in model.items() if key != "evals"}
    return {**config, **_schedule(record), "dtype": (record.summary or {}).get("dtype")}


def _schedule(record: Record) -> dict[str, Any]:
    """Return `interval` and `protect` of a setting that evicts while decoding; `when` is a field of `Name`."""
    node = record.config.get("eviction")
    if not record.when.endswith("+decode") or not isinstance(node, Mapping):
        return {}
    return {"eviction": {name: node.get(name) for name in ("interval", "protect")}}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of every scalar value in nested mappings, and the value as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        yield path, NONE if value is None else str(int(value) if whole else value)  # 200 and 200.0 are equal
