"""Which samples of several settings can be compared: those of one prompt, answered by a model of the same weights.

An id alone is not enough: an edited data file, another haystack or other weights keep the ids. Everything that compares
settings sample by sample names samples by `key`, and pairs them with `common`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evals.results.record import Record
from evals.results.schema import Line

Key = tuple[str, str]
"""A sample's id, and what tells its prompt and weights from others of this id."""


def key(record: Record, line: Line) -> Key:
    """The sample of one of the record's lines.

    Lines of older versions and of published trees have no hash of their prompt: there, it is what the summary says of
    all prompts. So they pair with each other, and never with lines that have one.
    """
    return line["id"], f"{record.weights} {line.get('prompt_sha256') or record.prompts}"


def common(settings: Sequence[Mapping[Key, Any]]) -> tuple[list[Key], int]:
    """The samples that all `settings` have, in the order of the first; and how many more have the same id in all, but
    another prompt or other weights in some."""
    first, *others = settings
    shared = [sample for sample in first if all(sample in other for other in others)]
    ids = [ids_of(setting) for setting in settings]
    return shared, len(set.intersection(*ids)) - len(shared)


def ids_of(samples: Iterable[Key]) -> set[str]:
    """The ids of samples."""
    return {id for id, _ in samples}


def alike(settings: Mapping[str, Sequence[Mapping[Key, Any]]]) -> list[list[str]]:
    """The names of `settings`, which have samples for each of the same tasks, in groups that can be compared.

    In every task, the settings of a group have a sample in common, and most of the ids that they share are samples that
    they share.
    """
    groups: list[tuple[list[str], list[tuple[set[Key], set[str]]]]] = []
    for name, tasks in settings.items():
        mine = [(set(samples), ids_of(samples)) for samples in tasks]
        for names, shared in groups:
            both = [(keys & of, ids & those) for (keys, ids), (of, those) in zip(shared, mine, strict=True)]
            if all(2 * len(keys) > len(ids) for keys, ids in both):
                names.append(name)
                shared[:] = both
                break
        else:
            groups.append(([name], mine))
    return [names for names, _ in groups]
