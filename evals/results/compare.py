"""Which settings of a results tree differ: paired per-sample differences with intervals, corrected p-values, groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import fmean

from evals.results.names import names
from evals.results.pairing import Key, alike, common, ids_of, key
from evals.results.record import Record
from evals.results.statistics import ALPHA, Difference, all_differences, groups, holm, interval

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
    """The settings of one model, evaluation and protocol, on the samples of one task or more that all of them have.

    `values`: the metric per sample, a sequence for every task, by setting, in equal order. `groups`: settings that
    cannot be told apart. `left_out`: how many samples have the same id in all settings, but another prompt or other
    weights in some; `apart`: settings of the same tasks that are left out since that holds for most of their samples.
    """

    title: str
    values: Mapping[str, Sequence[Sequence[float]]]
    pairs: Sequence[Pair]
    groups: Sequence[Sequence[str]]
    left_out: int = 0
    apart: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Samples of each setting."""
        return sum(map(len, next(iter(self.values.values()))))

    def mean(self, setting: str) -> float:
        """Over tasks, of the means of their samples."""
        return fmean(map(fmean, self.values[setting]))

    def interval(self, setting: str) -> tuple[float, float] | None:
        return interval(*self.values[setting])

    def letters(self, setting: str) -> str:
        """The groups that hold this setting, a letter each: settings that share one cannot be told apart."""
        return " ".join(_letter(place) for place, group in enumerate(self.groups) if setting in group)


def comparisons(records: Sequence[Record], metric: str) -> list[Comparison]:
    """One for each task with two settings or more that have `metric` on the same samples; then over all tasks.

    `metric` is a numeric field of the sample lines, such as `score` or `kl`. Samples that a setting lacks, or that have
    no number there, are left out for all; settings without any are left out. Over all tasks, every task counts the
    same, as in the average of a table. Settings of other prompts or weights, under the same ids, have a comparison of
    their own; a single such setting has one without pairs.
    """

    def place(record: Record) -> tuple[str, str, str]:
        return record.model, record.eval, record.protocol

    compared = []
    for (model, evaluation, protocol), group in groupby(sorted(records, key=place), key=place):
        of_evaluation = list(group)
        by_task: dict[str, dict[str, dict[Key, float]]] = {}
        for name, record in zip(names(of_evaluation), of_evaluation, strict=True):
            if values := _values(record, metric):
                by_task.setdefault(record.task, {})[name] = values
        title = f"{model} · {evaluation} · {protocol}"
        for task, settings in by_task.items():
            compared += _compared(f"{title} · {task}", {task: settings})
        if len(by_task) > 1:
            compared += _compared(f"{title} · all {len(by_task)} tasks", by_task)
    return compared


def _values(record: Record, metric: str) -> dict[Key, float]:
    """The metric by the sample."""
    values = {}
    for line in record.covered:
        value = line.get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values[key(record, line)] = float(value)
    return values


def _compared(title: str, by_task: Mapping[str, Mapping[str, Mapping[Key, float]]]) -> list[Comparison]:
    """The comparisons of the settings that every task has, if there are two: one for each group that can be compared.

    A mean over fewer tasks would stand under the title of all.
    """
    first, *others = by_task.values()
    names = [name for name in first if all(name in settings for settings in others)]
    groups_of = alike({name: [settings[name] for settings in by_task.values()] for name in names})
    compared = []
    for group in groups_of:
        apart = [
            name
            for other in groups_of
            if other is not group
            for name in other
            if any(ids_of(settings[name]) & ids_of(settings[group[0]]) for settings in by_task.values())
        ]
        if len(group) > 1 or apart:
            compared.append(_comparison(title, group, by_task, apart))
    return compared


def _comparison(
    title: str,
    names: Sequence[str],
    by_task: Mapping[str, Mapping[str, Mapping[Key, float]]],
    apart: Sequence[str],
) -> Comparison:
    """Of settings that have samples in common in every task."""
    aligned: dict[str, list[list[float]]] = {name: [] for name in names}
    left_out = 0
    for settings in by_task.values():
        shared, others = common([settings[name] for name in names])
        left_out += others
        for name in names:
            aligned[name].append([settings[name][sample] for sample in shared])
    couples = list(combinations(range(len(names)), 2))
    differences = all_differences(list(aligned.values()), couples)
    corrected = holm([each.p for each in differences])
    pairs = []
    for (one, other), each, p in zip(couples, differences, corrected, strict=True):
        pairs.append(Pair(names[one], names[other], each, p))
    differing = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
    return Comparison(title, aligned, pairs, groups(names, differing), left_out, apart)


def _letter(place: int) -> str:
    """a … z, a1 … z1, …"""
    turn, letter = divmod(place, len(LETTERS))
    return LETTERS[letter] + (str(turn) if turn else "")
