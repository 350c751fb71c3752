"""LongBench tables: tasks and averages down, settings across."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rich.table import Table

from evals.console import plain
from evals.longbench.aggregate import TaskScore, averages, interval, task_score
from evals.longbench.metrics import SampleScore
from evals.longbench.official import check_flags, check_rows
from evals.longbench.tasks import TASKS
from evals.results.record import Record, covered_lines
from evals.results.schema import Line

COLUMNS = 5
"""Settings beside each other in one table."""

SIZES = (
    ("kept/layer/head", "realised_budget", "{:.1f}", 1.0),
    ("cache MB", "cache_bytes", "{:.2f}", 1e-6),
    ("with sliding layers", "total_cache_bytes", "{:.2f}", 1e-6),
)
"""What a setting takes, as the mean over the prompts of all tasks: row, field of the samples, how it is shown, unit."""


def score(task: str, lines: Sequence[Line]) -> TaskScore:
    """The score of a task's sample lines, checked against the official rows."""
    samples = []
    for line in lines:
        # Where the official evaluation would fail on a pair, its score of 0 stands beside ours.
        overflow = "score_official" in line
        official = line["score_official"] if overflow else line["score"]
        samples.append(SampleScore(line["score"] / 100, official / 100, overflow))
    if all("official" in line for line in lines):
        check = check_flags(task, [line["official"] for line in lines])
    elif any("answers" not in line or "length" not in line or not line["id"].isdecimal() for line in lines):
        # Nobody can tell of a line without answers, as of older trees without texts: it counts as none.
        check = check_flags(task, [line.get("official", False) for line in lines])
    else:  # lines of older versions
        check = check_rows(task, [(int(line["id"]), line["answers"], line["length"]) for line in lines])
    return task_score(TASKS[task], samples, check)


def tables(title: str, records: Mapping[str, Sequence[Record]]) -> list[Table]:
    """Tables of all settings, given by name as the records of their tasks.

    An average is shown only where it is one over complete official tasks.
    """
    scores = {name: {r.task: score(r.task, r.covered) for r in of_tasks} for name, of_tasks in records.items()}
    names = list(scores)
    shown = []
    for start in range(0, len(names), COLUMNS):
        beside = names[start : start + COLUMNS]
        table = _table(title, {name: scores[name] for name in beside})
        table.add_section()
        for row in _sizes([records[name] for name in beside]):
            table.add_row(*row, "")
        shown.append(table)
    return shown


def _sizes(settings: Sequence[Sequence[Record]]) -> Iterator[list[str]]:
    """The rows of `SIZES` that a setting has samples for."""
    for title, field, form, unit in SIZES:
        sizes: list[list[float]] = []
        for of_tasks in settings:
            sizes.append([line[field] * unit for line in covered_lines(of_tasks) if field in line])
        if any(sizes):
            yield [title, str(max(map(len, sizes))), *(form.format(fmean(of)) if of else "–" for of in sizes)]


def _table(title: str, scores: Mapping[str, Mapping[str, TaskScore]]) -> Table:
    table = Table(title=plain(title))
    table.add_column("task")
    table.add_column("n", justify="right")
    for name in scores:
        table.add_column(plain(name), justify="right")
    table.add_column("note")
    tasks: dict[str, None] = {}
    for of_setting in scores.values():
        tasks |= dict.fromkeys(of_setting)
    for task in sorted(tasks, key=list(TASKS).index):
        results = [of_setting.get(task) for of_setting in scores.values()]
        first = next(result for result in results if result)
        cells = [_cell(result.score, interval([result])) if result else "" for result in results]
        table.add_row(task, str(len(first.samples)), *cells, first.problem)
    table.add_section()
    for rows in zip(*(averages(of_setting, tasks) for of_setting in scores.values()), strict=True):
        first_row = next((row for row in rows if row.n), rows[0])
        cells = [_cell(row.score, row.interval) if row.score is not None else "–" for row in rows]
        table.add_row(first_row.name, str(first_row.n), *cells, first_row.problem)
    return table


def _cell(value: float, bounds: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + (f" ({bounds[0]:.1f}–{bounds[1]:.1f})" if bounds else "")
