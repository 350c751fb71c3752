"""Name settings by their method, budget and protocol, and by the values that distinguish them from other settings."""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compresskv.errors import UserError
from compresskv.methods import named_method
from evals.results.record import Record
from evals.tables.methods import Name, named

IMMATERIAL = ("paths", "logger", "eval", "memory", "experiment", "eviction")
"""Parts of a configuration that change no prediction or only choose samples. The summary's `prompt` has the relevant
part of `eval`; the relevant part of `eviction` is added again."""

EVICTION = ("budget", "observation", "calibration")
"""Parts of a configuration that the full cache ignores."""

OF_METHOD = ("method", "budget", "protocol", "observation", "calibration")
"""Parts of a configuration that belong to a method, or that `Name` has itself. Settings that differ in another part,
such as the dtype, are not compared.
"""

NONE, OFF = "null", "False"
"""Texts for a value that is not set, and for a value that is switched off."""

Path = tuple[str, ...]

Leaves = dict[Path, str]
"""The scalar values of a configuration as text, by path."""

Outside = dict[tuple[str, str], dict[Path, str | None]]
"""Paths with their usual values (None: no usual value), by model and evaluation."""


def names(records: Sequence[Record], over_budgets: bool = False, outside: Outside | None = None) -> list[Name]:
    """Return the name of each record, such as `SnapKV 64`.

    Records that would share a name get a variant with the values in which they differ. Different settings have
    different names across all tasks. If no short value differs, the variant ends with a hash in brackets, which you
    must escape in markup. `over_budgets`: records also get a variant if other budgets of their method differ in more
    than the budget. A variant also has each value outside the method, such as the dtype, in which records of the model
    and evaluation differ. `outside` (default: computed from `records`) lists these values.
    """
    marked = len({record.protocol for record in records}) > 1
    found = [
        Name(named(record.method), record.budget, record.protocol, marked=marked, when=record.when)
        for record in records
    ]
    settings = [_setting(record, "budget" if over_budgets else "") for record in records]
    texts = [repr(sorted(leaves.items())) for leaves in settings]
    outside = outside_method(records) if outside is None else outside
    conditions, described = [], []
    for record, leaves in zip(records, settings, strict=True):
        usual = outside[record.model, record.eval]
        conditions.append(_text(leaves, [path for path in usual if leaves.get(path) != usual[path]]))
        described.append({path: value for path, value in leaves.items() if path not in usual})
    shared = [
        (record.model, record.eval, condition, replace(name, budget=None) if over_budgets else name)
        for record, condition, name in zip(records, conditions, found, strict=True)
    ]
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts]
    of_settings = _variants(records, shared, texts, described, hashes)
    # The records of one setting and task differ in their prompts.
    tasks = [(*key, text, each.task, each.budget) for key, text, each in zip(shared, texts, records, strict=True)]
    prompts = [dict(_leaves({"prompt": (record.summary or {}).get("prompt")})) for record in records]
    of_prompts = _variants(records, tasks, range(len(records)), prompts, [record.digest for record in records])
    return [
        replace(name, variant=" ".join(filter(None, variants)))
        for name, *variants in zip(found, conditions, of_settings, of_prompts, strict=True)
    ]


def outside_method(records: Sequence[Record]) -> Outside:
    """Return the paths outside the method in which records differ, and their usual values, by model and evaluation."""
    values: dict[tuple[str, str], dict[Path, set[str]]] = {}
    for record in records:
        of_both = values.setdefault((record.model, record.eval), {})
        for path, value in _setting(record).items():
            if path[0] not in OF_METHOD:
                of_both.setdefault(path, set()).add(value)
    return {
        of: {
            path: next((each for each in (NONE, OFF) if each in found), None)
            for path, found in paths.items()
            if len(found) > 1
        }
        for of, paths in values.items()
    }


def _variants(
    records: Sequence[Record],
    shared: Sequence[Hashable],
    identities: Sequence[Hashable],
    described: Sequence[Leaves],
    hashes: Sequence[str],
) -> list[str]:
    """Return variants, such as `heads=3`, that distinguish the `identities` of records that share a name; else "".

    The hash is appended if a variant is not unique. Default values are left out: the method's values in conf/method, or
    null if no record has the method's default.
    """
    alike: dict[Hashable, dict[Hashable, int]] = {}
    for place, (key, identity) in enumerate(zip(shared, identities, strict=True)):
        alike.setdefault(key, {}).setdefault(identity, place)
    variants: dict[tuple[Hashable, Hashable], str] = {}
    for key, places in alike.items():
        leaves = [described[place] for place in places.values()]
        differing = _differing(leaves)
        usual = _usual(records[next(iter(places.values()))], leaves, differing) if differing else {}
        paths = [[path for path in differing if each.get(path) != usual.get(path)] for each in leaves]
        texts = [_text(*each) for each in zip(leaves, paths, strict=True)]
        for (identity, place), text, of_text in zip(places.items(), texts, paths, strict=True):
            unique = (text or not of_text) and texts.count(text) == 1
            variants[key, identity] = text if unique else f"{text} [{hashes[place]}]".strip()
    return [variants[each] for each in zip(shared, identities, strict=True)]


def _usual(record: Record, described: Sequence[Leaves], differing: Sequence[Path]) -> Leaves:
    """Return the default values of the paths in `differing`."""
    own = dict(_leaves(_own(record)))
    usual = {}
    for path in differing:
        values = {leaves.get(path) for leaves in described}
        default = next((value for value in (own.get(path), NONE, OFF) if value is not None and value in values), None)
        if default is not None:
            usual[path] = default
    return usual


def _own(record: Record) -> dict[str, Any]:
    """Return the method's parameters in conf/method, in the form of a configuration; empty if conf/method does not have
    the method."""
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


def _setting(record: Record, left_out: str = "") -> Leaves:
    """Return the part of a setting's configuration that is the same in all its tasks, without the part `left_out`."""
    config = {key: value for key, value in record.config.items() if key not in (*IMMATERIAL, left_out)}
    if record.budget is None:
        config = {key: value for key, value in config.items() if key not in EVICTION}
    if isinstance(model := config.get("model"), Mapping):  # `evals` holds defaults of `eval`
        config["model"] = {key: value for key, value in model.items() if key != "evals"}
    schedule = record.config.get("eviction")
    if record.when.endswith("+decode") and isinstance(schedule, Mapping):  # `when` is a field of `Name`
        config["eviction"] = {name: schedule.get(name) for name in ("interval", "protect")}
    if dtype := (record.summary or {}).get("dtype"):
        config["dtype"] = dtype
    return dict(_leaves(config))


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of every scalar value in nested mappings, and the value as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        yield path, NONE if value is None else str(int(value) if whole else value)  # 200 and 200.0 are equal
