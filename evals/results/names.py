"""What a setting is called: its method, budget and protocol, and whatever else tells it from others."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compresskv.errors import UserError
from compresskv.methods import named_method
from evals.results.record import Record
from evals.tables.methods import Name, named

IMMATERIAL = ("paths", "logger", "eval", "memory", "experiment", "eviction")
"""Parts of a configuration that change no prediction, or choose samples; `prompt` has what matters of `eval`, and
`_schedule` what matters of `eviction`."""


NONE = "null"
"""The text of a setting that is not set."""

Path = tuple[str, ...]

Leaves = dict[Path, str]
"""Every single value of a configuration, as text, by its path."""


def names(records: Sequence[Record]) -> list[Name]:
    """The name of each, such as `SnapKV 64`; its variant is what differs among those that would share it.

    Settings that differ have different names, in whatever tasks they are. Where nothing short differs, the variant ends
    with a hash in brackets. Escape it where markup counts.
    """
    marked = len({record.protocol for record in records}) > 1
    found = [
        Name(named(record.method), record.budget, record.protocol, marked=marked, when=record.when)
        for record in records
    ]
    alike: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    for place, record in enumerate(records):
        settings = alike.setdefault((record.model, record.eval, found[place]), {})
        settings.setdefault(repr(sorted(_leaves(_setting(record)))), []).append(place)
    for settings in alike.values():
        firsts = [records[places[0]] for places in settings.values()]
        hashes = [hashlib.sha256(setting.encode()).hexdigest()[:8] for setting in settings]
        of_settings = _suffixes(firsts, [_setting(record) for record in firsts], hashes)
        for places, suffix in zip(settings.values(), of_settings, strict=True):
            by_task: dict[str, list[int]] = {}
            for place in places:
                by_task.setdefault(records[place].task, []).append(place)
            for of_task in by_task.values():
                same = [records[place] for place in of_task]
                prompts = [{"prompt": (record.summary or {}).get("prompt")} for record in same]
                within = _suffixes(same, prompts, [record.digest for record in same])
                for place, of_prompt in zip(of_task, within, strict=True):
                    found[place] = replace(found[place], variant=f"{suffix} {of_prompt}".strip())
    return found


def _suffixes(records: Sequence[Record], identities: Sequence[Mapping[str, Any]], hashes: Sequence[str]) -> list[str]:
    """What tells these apart, for each, such as `heads=3`; its hash too where that does not do.

    A default is not named: what a method has by itself, or null where none of them has that.
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
    """The defaults among the values that differ, by their paths."""
    own = dict(_leaves(_own(record)))
    usual = {}
    for path in differing:
        values = {leaves.get(path) for leaves in described}
        default = next((value for value in (own.get(path), NONE) if value is not None and value in values), None)
        if default is not None:
            usual[path] = default
    return usual


def _own(record: Record) -> dict[str, Any]:
    """What the method of that name has in conf/method, as a configuration has it; nothing for one that is not there."""
    node = record.config.get("method")
    try:
        method = named_method(str(node.get("name"))) if isinstance(node, Mapping) else None
    except UserError:
        method = None
    parts = {"scorer": method.scorer, "allocator": method.allocator} if method else {}
    return {"method": {name: part.parameters for name, part in parts.items() if part}}


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells these configurations apart, for each, such as `window=16 kernel=7`; what is long is left out."""
    described = [dict(_leaves(config)) for config in configs]
    return [_text(leaves, _differing(described)) for leaves in described]


def _differing(described: Sequence[Leaves]) -> list[Path]:
    paths = list(dict.fromkeys(path for leaves in described for path in leaves))
    return [path for path in paths if len({leaves.get(path) for leaves in described}) > 1]


def _text(leaves: Leaves, paths: Sequence[Path]) -> str:
    parts = dict.fromkeys(f"{path[-1]}={leaves[path]}" for path in paths if path in leaves)
    return " ".join(part for part in parts if len(part) <= 40)


def _setting(record: Record) -> dict[str, Any]:
    """What is the same in all tasks of a setting."""
    config = {key: value for key, value in record.config.items() if key not in IMMATERIAL}
    if isinstance(model := config.get("model"), Mapping):  # `evals` are defaults of `eval`
        config["model"] = {key: value for key, value in model.items() if key != "evals"}
    return {**config, **_schedule(record), "dtype": (record.summary or {}).get("dtype")}


def _schedule(record: Record) -> dict[str, Any]:
    """How often, and what, a setting evicts while it decodes; when it evicts is a field of `Name`."""
    node = record.config.get("eviction")
    if not record.when.endswith("+decode") or not isinstance(node, Mapping):
        return {}
    return {"eviction": {name: node.get(name) for name in ("interval", "protect")}}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every single value of nested mappings, as text, by its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        yield path, NONE if value is None else str(int(value) if whole else value)  # 200 and 200.0 are one setting
