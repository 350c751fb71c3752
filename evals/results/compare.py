"""Which settings of a results tree differ: paired per-sample differences with intervals, corrected p-values, groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

from evals.results.names import names
from evals.results.record import Record
from evals.results.statistics import ALPHA, Difference, difference, groups, holm, interval

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Pair:
    """`second` − `first` on the samples that both have, and whether the corrected `p` is below `ALPHA`."""

    first: str
    second: str
    difference: Difference
    p: float

    @property
    def differs(self) -> bool:
        return self.p < ALPHA


@dataclass(frozen=True)
class Comparison:
    """The settings of one model, evaluation, task and protocol, on the samples that all of them have.

    `values`: the metric per sample, by setting, in equal order. `groups`: settings that cannot be told apart.
    """

    title: str
    values: Mapping[str, Sequence[float]]
    pairs: Sequence[Pair]
    groups: Sequence[Sequence[str]]

    def mean(self, setting: str) -> float:
        return sum(self.values[setting]) / len(self.values[setting])

    def interval(self, setting: str) -> tuple[float, float] | None:
        return interval(self.values[setting])

    def letters(self, setting: str) -> str:
        """The groups that hold this setting, a letter each: settings that share one cannot be told apart."""
        return " ".join(_letter(place) for place, group in enumerate(self.groups) if setting in group)


def comparisons(records: Sequence[Record], metric: str) -> list[Comparison]:
    """One for each task with two settings or more that have `metric` on the same samples; then over all tasks.

    `metric` is a numeric field of the sample lines, such as `score` or `kl`. Samples that a setting lacks, or that have
    no number there, are left out for all; settings without any are left out. Over all tasks, each sample counts once.
    """

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.protocol

    compared = []
    for (model, evaluation, protocol), group in groupby(sorted(records, key=place), key=place):
        of_evaluation = list(group)
        by_task: dict[str, dict[str, dict[Any, float]]] = {}
        for name, record in zip(names(of_evaluation), of_evaluation, strict=True):
            if values := _values(record, metric):
                by_task.setdefault(record.task, {})[name] = values
        title = f"{model} · {evaluation} · {protocol}"
        for task, settings in by_task.items():
            compared += _compared(f"{title} · {task}", settings)
        if len(by_task) > 1:
            compared += _compared(f"{title} · all {len(by_task)} tasks", _together(by_task))
    return compared


def _values(record: Record, metric: str) -> dict[Any, float]:
    """The metric by the sample's id."""
    values = {}
    for line in record.covered:
        value = line.get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values[line["id"]] = float(value)
    return values


def _together(by_task: Mapping[str, Mapping[str, Mapping[Any, float]]]) -> dict[str, dict[Any, float]]:
    """The values of all tasks, by task and id, of the settings that every task has."""
    together: dict[str, dict[Any, float]] = {}
    for task, settings in by_task.items():
        for name, values in settings.items():
            if all(name in others for others in by_task.values()):
                together.setdefault(name, {}).update({(task, id): value for id, value in values.items()})
    return together


def _compared(title: str, settings: Mapping[str, Mapping[Any, float]]) -> list[Comparison]:
    """The comparison, if there are two settings and a sample that all have."""
    if len(settings) < 2:
        return []
    first, *others = settings.values()
    common = [id for id in first if all(id in values for values in others)]
    if not common:
        return []
    aligned = {name: [values[id] for id in common] for name, values in settings.items()}
    couples = list(combinations(aligned, 2))
    differences = [difference(aligned[one], aligned[other], len(couples)) for one, other in couples]
    corrected = holm([each.p for each in differences])
    pairs = []
    for (one, other), each, p in zip(couples, differences, corrected, strict=True):
        pairs.append(Pair(one, other, each, p))
    differing = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
    return [Comparison(title, aligned, pairs, groups(list(aligned), differing))]


def _letter(place: int) -> str:
    """a … z, a1 … z1, …"""
    turn, letter = divmod(place, len(LETTERS))
    return LETTERS[letter] + (str(turn) if turn else "")
