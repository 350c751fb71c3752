"""LongBench tables: tasks and averages down, settings across."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from evals.longbench.aggregate import TaskScore, averages, interval, task_score
from evals.longbench.metrics import SampleScore
from evals.longbench.official import check_rows
from evals.longbench.tasks import TASKS
from evals.results.store import Line

COLUMNS = 5
"""Settings beside each other in one table."""


def score(task: str, lines: Sequence[Line]) -> TaskScore:
    """The score of a task's sample lines, checked against the official rows."""
    samples = [
        SampleScore(line["score"] / 100, line.get("score_official", line["score"]) / 100, "score_official" in line)
        for line in lines
    ]
    rows = [(int(line["id"]), line["answers"], line["length"]) for line in lines]
    return task_score(TASKS[task], samples, check_rows(task, rows))


def tables(title: str, settings: Mapping[str, Mapping[str, Sequence[Line]]]) -> list[Table]:
    """Tables of all settings, each given as the lines of its tasks.

    An average is shown only where it is one over complete official tasks.
    """
    scores = {name: {task: score(task, lines) for task, lines in tasks.items()} for name, tasks in settings.items()}
    names = list(scores)
    return [
        _table(title, {name: scores[name] for name in names[i : i + COLUMNS]}) for i in range(0, len(names), COLUMNS)
    ]


def _table(title: str, scores: Mapping[str, Mapping[str, TaskScore]]) -> Table:
    shown = Table(title=title)
    shown.add_column("task")
    shown.add_column("n", justify="right")
    for name in scores:
        shown.add_column(name, justify="right")
    shown.add_column("note")
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    for task in sorted(tasks, key=list(TASKS).index):
        found = [of_setting.get(task) for of_setting in scores.values()]
        first = next(result for result in found if result)
        cells = [_cell(result.score, interval([result])) if result else "" for result in found]
        shown.add_row(task, str(len(first.samples)), *cells, first.problem)
    shown.add_section()
    for rows in zip(*(averages(of_setting) for of_setting in scores.values()), strict=True):
        cells = [_cell(row.score, row.interval) if row.score is not None else "–" for row in rows]
        shown.add_row(rows[0].name, str(rows[0].n), *cells, rows[0].problem)
    return shown


def _cell(value: float, bounds: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + (f" ({bounds[0]:.0f}–{bounds[1]:.0f})" if bounds else "")
