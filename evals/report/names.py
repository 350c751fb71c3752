"""Names for settings: method and budget, and whatever else tells the settings of one table apart."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evals.results.record import Record

NOT_A_SETTING = ("paths", "logger", "model", "eval", "budget", "memory")
"""Parts of a configuration that do not change how a setting works, or that have a place of their own in a table."""


def setting_names(records: Sequence[Record]) -> list[str]:
    """A name for each record of one evaluation: `snapkv 64`, and where that is not enough, what differs beside it.

    Records of one setting on several tasks share a name.
    """
    names = [record.method if record.budget is None else f"{record.method} {record.budget}" for record in records]
    if len({record.protocol for record in records}) > 1:
        names = [f"{name} ({record.protocol})" for name, record in zip(names, records, strict=True)]
    counts = Counter((record.task, name) for record, name in zip(records, names, strict=True))
    ambiguous = {name for (_, name), count in counts.items() if count > 1}
    full_names = []
    for record, name in zip(records, names, strict=True):
        if name in ambiguous:
            others = [other for other, other_name in zip(records, names, strict=True) if other_name == name]
            name = f"{name} {_difference(record, others)}"
        full_names.append(name)
    return full_names


def _difference(record: Record, others: Sequence[Record]) -> str:
    """What of the configuration sets `record` apart from `others`, as `window=16 kernel=5`; else its folder's hash."""
    settings = [
        _flat({key: part for key, part in other.config.items() if key not in NOT_A_SETTING}) for other in others
    ]
    mine = settings[others.index(record)]
    differing = [key for key in mine if len({repr(setting.get(key)) for setting in settings}) > 1]
    alike = sum(
        other.task == record.task and all(setting.get(key) == mine[key] for key in differing)
        for other, setting in zip(others, settings, strict=True)
    )
    words = [f"{key.rpartition('.')[2]}={mine[key]}" for key in differing]
    return " ".join(words if words and alike == 1 else [*words, f"[{record.digest}]"])


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
