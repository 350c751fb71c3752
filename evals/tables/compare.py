"""Paired comparisons: the one place that decides whether settings differ.

Only samples of one prompt, answered by a model of the same weights, are compared. An id alone is not enough: an edited
data file, another text or other weights keep the ids. So samples are named by `Key`, and paired with `common`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from statistics import fmean
from typing import Any, Literal

from compresskv.budget import Budget
from evals.tables.equivalence import POWER, Margin
from evals.tables.statistics import ALPHA, Difference, all_differences, groups, holm, interval, mean_difference
from evals.tables.table import Key, Metric, Row, Strata, Table

BETTER = "in favour of {better}"

Outcome = Literal["differs", "equivalent", "undecided"]

TESTS = (
    "p: paired permutation test of no difference; p (equivalence): two one-sided tests of a difference within the "
    "margin, each Holm-corrected over one family: "
)

NEEDED = (
    f"n needed: samples with which one of the two tests decides with a probability of {100 * POWER:g} %, were mean and "
    "spread as here."
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared: `pairs`, (first, second) by method; without pairs, every method with `subject`.

    Without a subject (""), every method is compared with the best of its budget. `finding` is how a shown difference
    reads. `tested`: whether anything is compared at all. `margins`: by the field of a metric, the margin within which
    two means are equivalent, in place of the metric's own.
    """

    subject: str = "CompressKV"
    pairs: tuple[tuple[str, str], ...] = ()
    finding: str = BETTER
    tested: bool = True
    margins: Mapping[str, float] = field(default_factory=dict)

    def margin(self, metric: Metric) -> Margin | None:
        """The margin of a metric; None where nobody stated one."""
        return stated(metric, self.margins.get(metric.field))

    def family(self, metrics: Iterable[Metric]) -> str:
        """The sentences that say which comparisons by these metrics are one family, and what is tested."""
        subject = self.subject or "the best method of each budget"
        compared = "of this table" if self.pairs else f"of {subject} with another method of the same budget"
        margins = {metric.field: margin for metric in metrics if (margin := self.margin(metric))}
        return (
            f"{TESTS}all comparisons {compared}, for one model, evaluation, protocol and metric. "
            f"{text_of_margins(margins)}{NEEDED}"
        )


def text_of_margins(margins: Mapping[str, Margin]) -> str:
    """A sentence on the margins by field; "" for none."""
    said = ", ".join(f"{margin.within:g} ({field})" for field, margin in margins.items())
    return f"Margin: {said}. " if said else ""


def stated(metric: Metric, within: float | None) -> Margin | None:
    """The margin that a user states for a metric, or else its own; None where there is none."""
    within = metric.margin if within is None else within
    return None if within is None else Margin(within, metric.largest)


@dataclass(frozen=True)
class Verdict:
    """`second` − `first` over the `n` samples that both have; both p-values are corrected for their family.

    `metric` and `column` say of what; `lower`: whether lower values are better. `margin`: within what the two would be
    equivalent, with `equivalence` as its p-value; None where nobody stated one. `needed`: samples that would decide;
    None where no number would, as for equal means without a margin. `partial`: whether either has a part of the samples
    alone.
    """

    model: str
    eval: str
    budget: Budget | None
    first: str
    second: str
    mean: float
    interval: tuple[float, float] | None
    p: float
    n: int
    needed: int | None
    metric: str = "score"
    column: str = "average"
    digits: int = 2
    lower: bool = False
    finding: str = BETTER
    partial: bool = False
    margin: float | None = None
    equivalence: float | None = None

    @property
    def outcome(self) -> Outcome:
        """A difference that is shown, however small, is one; means without one may be shown to be equivalent."""
        return _outcome(self.p, self.equivalence)

    @property
    def shown(self) -> bool:
        """Whether there is a difference."""
        return self.outcome == "differs"

    @property
    def ordered(self) -> tuple[str, str]:
        """The worse and the better one, by their means."""
        return (self.first, self.second) if (self.mean > 0) != self.lower else (self.second, self.first)

    @property
    def words(self) -> str:
        worse, better = self.ordered
        found = self.finding.format(worse=worse, better=better)
        return found if self.shown else words(self.outcome, self.margin)


def _outcome(p: float, equivalence: float | None) -> Outcome:
    if p < ALPHA:
        return "differs"
    return "equivalent" if equivalence is not None and equivalence < ALPHA else "undecided"


def words(outcome: Outcome, margin: float | None) -> str:
    """How an outcome reads; without a margin, nothing can be equivalent, and nothing is decided by a lack of proof."""
    if outcome == "equivalent":
        return f"equivalent within {margin:g}"
    return "differ" if outcome == "differs" else "undecided" if margin is not None else "no difference shown"


def needed(difference: Difference) -> int | None:
    """Samples with which one of the two tests would decide; None where no number would."""
    return min((n for n in (difference.needed, difference.enough) if n is not None), default=None)


def verdicts(question: Question, table: Table) -> list[Verdict]:
    """The comparisons of a table.

    The rows of one budget, protocol, variant and time of eviction are compared on the samples that both have. Those of
    one protocol are a family.
    """
    if not question.tested:
        return []
    pairs = [
        (column, *pair) for column in table.compared or [table.overall] for pair in _pairs(question, table, column)
    ]
    families = Counter(first.protocol for _, first, _ in pairs)
    margin = question.margin(table.metric)
    found = [
        paired(first.cells[column].strata, second.cells[column].strata, families[first.protocol], margin)
        for column, first, second in pairs
    ]
    corrected = [(0.0, 0.0)] * len(pairs)
    for protocol in families:
        places = [place for place, (_, first, _) in enumerate(pairs) if first.protocol == protocol]
        for place, *both in zip(places, *_corrected([found[place] for place in places]), strict=True):
            corrected[place] = both[0], both[1]
    return [
        Verdict(
            table.model,
            table.eval,
            first.budget,
            first.label,
            second.label,
            round(difference.mean, table.metric.digits),
            difference.interval,
            p,
            difference.n,
            needed(difference),
            table.metric.field,
            column,
            table.metric.digits,
            table.metric.better == "lower",
            question.finding,
            first.cells[column].partial or second.cells[column].partial,
            None if margin is None else margin.within,
            None if margin is None else equivalence,
        )
        for (column, first, second), difference, (p, equivalence) in zip(pairs, found, corrected, strict=True)
    ]


def _corrected(family: Sequence[Difference]) -> tuple[list[float], list[float]]:
    """The corrected p-values of no difference, and those of equivalence."""
    return holm([each.p for each in family]), holm([each.equivalence for each in family])


def _pairs(question: Question, table: Table, column: str) -> Iterator[tuple[Row, Row]]:
    """Rows of one budget, protocol, variant and time of eviction with samples of the column in common."""
    subject = subject_of(question, table)
    for rows in table.comparable.values():
        best = _best(table, column, rows) if not subject else None
        for first in rows:
            for second in rows:
                one, other = first.name, second.name
                of_subject = one.method == subject if subject else first is best
                wanted = (one.method, other.method) in question.pairs if question.pairs else of_subject
                alike = (one.protocol, one.variant) == (other.protocol, other.variant)
                if (
                    first is second
                    or not wanted
                    or not alike
                    or not {column} <= first.cells.keys() & second.cells.keys()
                ):
                    continue
                if first.cells[column].samples & second.cells[column].samples:
                    yield first, second


def _best(table: Table, column: str, rows: Sequence[Row]) -> Row | None:
    """The first of these rows whose mean is the best; None where they are not ranked."""
    ranks = table.ranks(column, rows)
    return next((rows[place] for place, rank in ranks.items() if rank == 1), None)


def subject_of(question: Question, table: Table) -> str:
    """What all methods of a table are compared with: the question's subject; where it was not run, what comes first of
    the largest budget with several rows. "" for a question without a subject."""
    if not question.subject or any(row.name.method == question.subject for row in table.rows if row.budget is not None):
        return question.subject
    several = (rows[0].name.method for rows in table.comparable.values() if len(rows) > 1)
    return next(several, question.subject)


def paired(first: Strata, second: Strata, comparisons: int = 1, margin: Margin | None = None) -> Difference:
    """`second` − `first` on the samples that both have, at least one; corrected for the number of `comparisons`."""
    return mean_difference(differences(first, second), comparisons, margin)


def differences(first: Strata, second: Strata) -> list[list[float]]:
    """`second` − `first` on the samples that both have, for each task with such samples."""
    strata = []
    for task in first:
        shared, _ = common([first[task], second.get(task, {})])
        if shared:
            strata.append([second[task][sample] - first[task][sample] for sample in shared])
    return strata


def unpaired(table: Table) -> list[str]:
    """A sentence for every row with samples whose prompts or weights are not those of most rows under the same ids."""
    notes = []
    by_kind: dict[tuple[str, str, str], list[Row]] = {}
    for row in table.rows:
        if table.overall in row.cells:
            by_kind.setdefault((row.protocol, row.when, row.name.variant), []).append(row)
    for rows in by_kind.values():
        counted = Counter(chain.from_iterable(row.cells[table.overall].samples for row in rows))
        usual: dict[tuple[str, str], Key] = {}
        for (task, sample), _ in counted.most_common():
            usual.setdefault((task, sample[0]), sample)
        for row in rows:
            samples = row.cells[table.overall].samples
            others = sum(usual[task, sample[0]] != sample for task, sample in samples)
            if others:
                notes.append(
                    f"{table.model}, {row.name}: {others} of {len(samples)} samples have another prompt, or other "
                    "weights of the model, than those of most rows under the same ids: they are compared with none of "
                    "these."
                )
    return notes


@dataclass(frozen=True)
class Pair:
    """`second` − `first` on the samples that both have, with corrected p-values, as `Verdict` has them."""

    first: str
    second: str
    difference: Difference
    p: float
    equivalence: float = 1.0

    @property
    def outcome(self) -> Outcome:
        return _outcome(self.p, self.equivalence)

    @property
    def differs(self) -> bool:
        return self.outcome == "differs"


@dataclass(frozen=True)
class Comparison:
    """All pairs of the settings of one model, evaluation and protocol, on the samples of the tasks that all have.

    `values`: the metric per sample, a sequence for every task, by setting, in equal order. `groups`: settings that
    cannot be told apart. `left_out`: how many samples have the same id in all settings, but another prompt or other
    weights in some; `apart`: settings of the same tasks that are left out since that holds for most of their samples.
    `margin`: within what two are equivalent; None where nobody stated one.
    """

    title: str
    values: Mapping[str, Sequence[Sequence[float]]]
    pairs: Sequence[Pair]
    groups: Sequence[Sequence[str]]
    left_out: int = 0
    apart: Sequence[str] = ()
    margin: float | None = None

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


def all_pairs(
    title: str, by_task: Mapping[str, Mapping[str, Mapping[Key, float]]], margin: Margin | None = None
) -> list[Comparison]:
    """The comparisons of the settings that every task has, if there are two: one for each group that can be compared.

    `by_task`: values of samples by task and setting. A mean over fewer tasks would be headed as one over all.
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
            compared.append(_comparison(title, group, by_task, apart, margin))
    return compared


def _comparison(
    title: str,
    names: Sequence[str],
    by_task: Mapping[str, Mapping[str, Mapping[Key, float]]],
    apart: Sequence[str],
    margin: Margin | None,
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
    found = all_differences(list(aligned.values()), couples, margin)
    pairs = [
        Pair(names[one], names[other], each, p, equivalence)
        for (one, other), each, p, equivalence in zip(couples, found, *_corrected(found), strict=True)
    ]
    differing = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
    within = None if margin is None else margin.within
    return Comparison(title, aligned, pairs, groups(names, differing), left_out, apart, within)


def _letter(place: int) -> str:
    """a … z, a1 … z1, …"""
    turn, letter = divmod(place, len(LETTERS))
    return LETTERS[letter] + (str(turn) if turn else "")


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
