"""Paired comparisons. All decisions on whether settings differ are made in this module.

Samples are compared only if they have the same prompt and the model has the same weights. The id is not sufficient,
because it does not change with an edited data file, another text or other weights. Samples are therefore identified by
`Key`, and paired with `common`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, count, permutations
from statistics import fmean
from string import ascii_lowercase
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
    f"n needed: number of samples with which one of the two tests decides with a probability of {100 * POWER:g} %, for "
    "this mean and spread."
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """The comparisons to make: `pairs` of methods (first, second), or without pairs every method with `subject`.

    If `subject` is "", every method is compared with the best one of its budget. `finding` is the text of a difference
    that is shown. `tested`: whether anything is compared. `margins`: the margin within which two means are equivalent,
    by the metric's field; default: the metric's margin.
    """

    subject: str = "CompressKV"
    pairs: tuple[tuple[str, str], ...] = ()
    finding: str = BETTER
    tested: bool = True
    margins: Mapping[str, float] = field(default_factory=dict)

    def margin(self, metric: Metric) -> Margin | None:
        """Return the margin of a metric; None if the metric has no margin."""
        return stated(metric, self.margins.get(metric.field))

    def family(self, metrics: Iterable[Metric], each: str = "model, evaluation, protocol and metric") -> str:
        """Describe the family of comparisons whose p-values are corrected together, and what is tested.

        `each`: what the comparisons of a family have in common.
        """
        compared = f"of {self.subject} with another method of the same budget"
        if self.pairs:
            compared = "of this table"
        elif not self.subject:  # the same data show which method is the best
            compared = "of two methods of the same budget (shown: comparisons with the best method)"
        margins = {metric.field: margin.within for metric in metrics if (margin := self.margin(metric))}
        said = ", ".join(f"{within:g} ({field})" for field, within in margins.items())
        with_margins = f"Margin: {said}. " if said else ""
        return f"{TESTS}all comparisons {compared}, for one {each}. {with_margins}{NEEDED}"


def stated(metric: Metric, within: float | None) -> Margin | None:
    """Return the user's margin for a metric, or else its default margin; None if the metric has no margin."""
    within = metric.margin if within is None else within
    return None if within is None else Margin(within, metric.largest)


@dataclass(frozen=True)
class Verdict:
    """`second` − `first` over the `n` samples that both have; both p-values are corrected for their family.

    `metric` and `column` name the compared values; `lower`: whether lower values are better. `margin`: the margin
    within which the two would be equivalent; `equivalence`: its p-value; None without a margin. `needed`: number of
    samples that would decide; None if no number would, as for equal means without a margin. `partial`: whether either
    setting has only a part of the samples.
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
        """Return the outcome: a shown difference takes precedence over equivalence."""
        return _outcome(self.p, self.equivalence)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: `p` is below `ALPHA`."""
        return self.outcome == "differs"

    @property
    def ordered(self) -> tuple[str, str]:
        """Return the worse and the better setting, by their means."""
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
    """Return the outcome in words. Without a margin, two settings are never called equivalent."""
    if outcome == "equivalent":
        return f"equivalent within {margin:g}"
    return "differ" if outcome == "differs" else "undecided" if margin is not None else "no difference shown"


def verdicts(question: Question, table: Table) -> list[Verdict]:
    """Return the comparisons of a table.

    Rows with the same budget, protocol, variant and time of eviction are compared on the samples that both have. All
    comparisons of one protocol are one family. If the data choose the method that is compared with the other methods,
    all pairs of methods count as comparisons.
    """
    if not question.tested:
        return []
    columns = table.compared or [table.overall]
    pairs = [(column, *pair) for column in columns for pair in _pairs(question, table, column)]
    chosen_by_data = not (question.subject or question.pairs)
    counted = [pair for column in columns for pair in _all_pairs(table, column)] if chosen_by_data else pairs
    numbers = Counter(first.protocol for _, first, _ in counted)
    families = [first.protocol for _, first, _ in pairs]
    margin = question.margin(table.metric)
    found = [
        mean_difference(
            differences(first.cells[column].strata, second.cells[column].strata),
            numbers[first.protocol],
            margin,
        )
        for column, first, second in pairs
    ]
    return [
        Verdict(
            model=table.model,
            eval=table.eval,
            budget=first.budget,
            first=first.label,
            second=second.label,
            mean=round(difference.mean, table.metric.digits),
            interval=difference.interval,
            p=difference.p,
            n=difference.n,
            needed=difference.deciding,
            metric=table.metric.field,
            column=column,
            digits=table.metric.digits,
            lower=table.metric.better == "lower",
            finding=question.finding,
            partial=first.cells[column].partial or second.cells[column].partial,
            margin=None if margin is None else margin.within,
            equivalence=None if margin is None else difference.equivalence,
        )
        for (column, first, second), difference in zip(pairs, _corrected(found, families, numbers), strict=True)
    ]


def _corrected(found: Sequence[Difference], families: Sequence[str], numbers: Mapping[str, int]) -> list[Difference]:
    """Return the differences with both p-values corrected for the number of comparisons of their family."""
    corrected = list(found)
    for family in set(families):
        places = [place for place, other in enumerate(families) if other == family]
        p_values = holm([found[place].p for place in places], numbers[family])
        equivalences = holm([found[place].equivalence for place in places], numbers[family])
        for place, p, equivalence in zip(places, p_values, equivalences, strict=True):
            corrected[place] = replace(found[place], p=p, equivalence=equivalence)
    return corrected


def _pairs(question: Question, table: Table, column: str) -> Iterator[tuple[Row, Row]]:
    """Yield pairs of rows to compare: same budget, protocol, variant and time of eviction, and shared samples."""
    subject = subject_of(question, table)
    for rows in table.comparable:
        best = next((rows[place] for place, rank in table.ranks(column, rows).items() if rank == 1), None)
        for first, second in permutations((row for row in rows if column in row.cells), 2):
            one, other = first.name, second.name
            if question.pairs:
                wanted = (one.method, other.method) in question.pairs
            else:
                wanted = one.method == subject if subject else first is best
            if wanted and _alike(first, second, column):
                yield first, second


def _alike(first: Row, second: Row, column: str) -> bool:
    """Return whether two rows of a group have the same variant, and shared samples in the column."""
    same = first.name.variant == second.name.variant
    return same and bool(first.cells[column].samples & second.cells[column].samples)


def _all_pairs(table: Table, column: str) -> Iterator[tuple[str, Row, Row]]:
    """Yield the column and both rows of every pair that can be compared."""
    for rows in table.comparable:
        for first, second in combinations((row for row in rows if column in row.cells), 2):
            if _alike(first, second, column):
                yield column, first, second


def subject_of(question: Question, table: Table) -> str:
    """Return the method with which all methods of a table are compared; "" if the question has no subject.

    This is the question's subject. If the subject was not run, it is the first method of the largest budget that has
    several rows.
    """
    if not question.subject or any(row.name.method == question.subject for row in table.rows if row.budget is not None):
        return question.subject
    several = (rows[0].name.method for rows in table.comparable if len(rows) > 1)
    return next(several, question.subject)


def differences(first: Strata, second: Strata) -> list[list[float]]:
    """Return `second` − `first` on the samples that both have, for each task with such samples."""
    strata = []
    for task in first:
        shared, _ = common([first[task], second.get(task, {})])
        if shared:
            strata.append([second[task][sample] - first[task][sample] for sample in shared])
    return strata


def unpaired(table: Table) -> list[str]:
    """Return a sentence for each row with samples whose prompt or weights differ from most rows under the same ids."""
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
                    f"{table.model}, {row.name}: {others} of {len(samples)} samples have the id of samples in most "
                    "other rows, but another prompt or other weights of the model. They are not compared with these "
                    "rows."
                )
    return notes


@dataclass(frozen=True)
class Pair:
    """`second` − `first` on the samples that both have; the p-values of `difference` are corrected."""

    first: str
    second: str
    difference: Difference

    @property
    def p(self) -> float:
        return self.difference.p

    @property
    def outcome(self) -> Outcome:
        return _outcome(self.p, self.difference.equivalence)

    @property
    def differs(self) -> bool:
        return self.outcome == "differs"


@dataclass(frozen=True)
class Comparison:
    """All pairs of settings of one model, evaluation and protocol, compared on the samples that all settings have.

    - `values`: by setting, the metric of each sample as a sequence for every task, in equal order.
    - `groups`: groups of settings that cannot be told apart.
    - `left_out`: number of samples with the same id in all settings, but with a different prompt or weights in some
    settings.
    - `apart`: settings of the same tasks that are left out because most of their samples have a different prompt or
    weights.
    - `margin`: the margin of equivalence, or None.
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
        """Number of samples of each setting."""
        return sum(map(len, next(iter(self.values.values()))))

    def mean(self, setting: str) -> float:
        """Return the mean over tasks of the means of their samples."""
        return fmean(map(fmean, self.values[setting]))

    def interval(self, setting: str) -> tuple[float, float] | None:
        return interval(*self.values[setting])

    def letters(self, setting: str) -> str:
        """Return a letter (a … z, a1 … z1, …) for each group with this setting.

        Settings that share a letter cannot be told apart.
        """
        names = (f"{letter}{turn or ''}" for turn in count() for letter in ascii_lowercase)
        return " ".join(name for name, group in zip(names, self.groups, strict=False) if setting in group)


def all_pairs(
    title: str, by_task: Mapping[str, Mapping[str, Mapping[Key, float]]], margin: Margin | None = None
) -> list[Comparison]:
    """Compare all settings that every task has: one comparison for each group of settings that can be compared.

    `by_task` holds the values of samples by task and setting. Settings that lack a task are left out, because their
    means would appear under a title that names all tasks.
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
    """Compare settings that have samples in common in every task."""
    aligned: dict[str, list[list[float]]] = {name: [] for name in names}
    left_out = 0
    for settings in by_task.values():
        shared, others = common([settings[name] for name in names])
        left_out += others
        for name in names:
            aligned[name].append([settings[name][sample] for sample in shared])
    couples = list(combinations(range(len(names)), 2))
    found = all_differences(list(aligned.values()), couples, margin)
    corrected = _corrected(found, [title] * len(found), {title: len(found)})
    pairs = [Pair(names[one], names[other], each) for (one, other), each in zip(couples, corrected, strict=True)]
    differing = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
    within = None if margin is None else margin.within
    return Comparison(title, aligned, pairs, groups(names, differing), left_out, apart, within)


def common(settings: Sequence[Mapping[Key, Any]]) -> tuple[list[Key], int]:
    """Return the samples that all `settings` have, in the order of the first setting. Also return the number of ids
    that all settings have, but with a different prompt or weights in some settings."""
    first, *others = settings
    shared = [sample for sample in first if all(sample in other for other in others)]
    ids = [ids_of(setting) for setting in settings]
    return shared, len(set.intersection(*ids)) - len(shared)


def ids_of(samples: Iterable[Key]) -> set[str]:
    """Return the ids of the samples."""
    return {id for id, _ in samples}


def alike(settings: Mapping[str, Sequence[Mapping[Key, Any]]]) -> list[list[str]]:
    """Group the names of `settings`, which have samples of the same tasks, so that each group can be compared.

    In every task, the settings of a group have a sample in common, and most ids that they share have the same prompt
    and weights.
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
