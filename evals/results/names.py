"""How tables name settings: method and budget, and whatever else tells those of one task apart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.results.record import Record

IMMATERIAL = ("paths", "logger", "eval", "memory")
"""Parts of a configuration that change no prediction, or choose samples; `prompt` has what matters of `eval`."""


def names(records: Sequence[Record]) -> list[str]:
    """A name for each, such as `snapkv 64`, with what differs among those that would share one: `window=16`.

    Where nothing short differs, it ends with the folder's hash in brackets. Escape it where markup counts.
    """
    protocols = {record.protocol for record in records}
    plain = [_plain(record) + (f" ({record.protocol})" if len(protocols) > 1 else "") for record in records]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, record in enumerate(records):
        alike.setdefault((record.model, record.eval, record.task, plain[place]), []).append(place)
    named = list(plain)
    for places in alike.values():
        if len(places) > 1:
            suffixes = _suffixes([records[place] for place in places])
            for place, suffix in zip(places, suffixes, strict=True):
                named[place] = f"{plain[place]} {suffix}"
    return named


def _plain(record: Record) -> str:
    return record.method if record.budget is None else f"{record.method} {record.budget}"


def _suffixes(records: Sequence[Record]) -> list[str]:
    """What tells these apart, for each; the hash too where that does not do."""
    suffixes = differences([_identity(record) for record in records])
    return [
        suffix if suffix and suffixes.count(suffix) == 1 else f"{suffix} [{record.digest}]".strip()
        for suffix, record in zip(suffixes, records, strict=True)
    ]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells these configurations apart, for each, such as `window=16 kernel=7`; what is long is left out."""
    described = [dict(_leaves(config)) for config in configs]
    paths = list(dict.fromkeys(path for leaves in described for path in leaves))
    differing = [path for path in paths if len({leaves.get(path) for leaves in described}) > 1]
    suffixes = []
    for leaves in described:
        parts = dict.fromkeys(f"{path[-1]}={leaves[path]}" for path in differing if path in leaves)
        suffixes.append(" ".join(part for part in parts if len(part) <= 40))
    return suffixes


def _identity(record: Record) -> dict[str, Any]:
    config = {key: value for key, value in record.config.items() if key not in IMMATERIAL}
    summary = record.summary or {}
    return {**config, "prompt": summary.get("prompt"), "dtype": summary.get("dtype")}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every single value of nested mappings, as text, by its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, "default" if value is None else str(value)
