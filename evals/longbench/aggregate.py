"""Aggregate sample scores into task scores, category averages and the average of 16 tasks, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.longbench.official import RowCheck
from evals.longbench.scoring import SampleScore, dataset_score
from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS, Task
from evals.tables import statistics
from evals.tables.table import Cell, Key

AVERAGE_OF_16 = "average of 16"

BY_CATEGORY = {category: (category,) for category in CATEGORIES}


@dataclass(frozen=True)
class TaskScore:
    """Result of one task: `samples` 0 to 1, `score` and `official` 0 to 100 with two decimals.

    `overflow`: number of samples with a ROUGE pair that may exceed the official recursion limit; in `official`, such
    pairs score 0. `check`: None if the rows could not be compared with the official rows.
    """

    task: Task
    samples: tuple[float, ...]
    score: float
    official: float
    overflow: int
    check: RowCheck | None

    @property
    def counted(self) -> int:
        """Number of samples that are official rows, as far as known."""
        return max(len(self.samples) - (self.check.mismatching if self.check else 0), 0)

    @property
    def problem(self) -> str:
        """Reason why this is not a score on the official test set; "" if it is a score on the official test set."""
        n, official = len(self.samples), self.task.n
        foreign = self.check.mismatching if self.check else 0
        if n < official:
            which = f", {'none' if foreign == n else f'{n - foreign}'} of them official" if foreign else ""
            return f"incomplete: {n} of {official} rows{which}"
        if n > official:
            return f"{n} rows instead of {official}"
        return f"{foreign} rows are not official" if foreign else ""


def task_score(task: Task, samples: Sequence[SampleScore], check: RowCheck | None = None) -> TaskScore:
    """Aggregate the scores of a task's samples, at least one."""
    return TaskScore(
        task=task,
        samples=tuple(sample.score for sample in samples),
        score=dataset_score([sample.score for sample in samples]),
        official=dataset_score([sample.official for sample in samples]),
        overflow=sum(sample.overflow for sample in samples),
        check=check,
    )


def interval(score: TaskScore) -> tuple[float, float] | None:
    """Compute the 95 % percentile bootstrap interval, 0 to 100, of a task score; None for a single sample."""
    return statistics.interval([100 * sample for sample in score.samples])


def averages(
    values: Mapping[str, Mapping[Key, float]],
    counted: Mapping[str, int],
    official: Mapping[str, int] | None = None,
    groups: Mapping[str, Sequence[str]] = BY_CATEGORY,
) -> dict[str, Cell]:
    """Average over each of the `groups` of categories, and over the 16 English tasks.

    Each average is the unweighted mean of rounded task scores, as in published tables. `values`: sample values by task;
    `counted`: number of official values by task; `official`: number of rows of a task, if not the usual number. An
    average is partial unless it covers all official rows of all its tasks. Groups without any task are left out.
    """
    rows = {task: TASKS[task].n for task in ENGLISH} | dict(official or {})
    wanted = {name: [task for task in ENGLISH if TASKS[task].category in of] for name, of in groups.items()}
    cells = {}
    for name, tasks in {**wanted, AVERAGE_OF_16: ENGLISH}.items():
        if present := [task for task in tasks if task in values]:
            of, here = sum(rows[task] for task in tasks), sum(counted[task] for task in present)
            cells[name] = Cell({task: values[task] for task in present}, of, here, tasks=len(tasks))
    return cells


def averages_of(scores: Mapping[str, TaskScore]) -> dict[str, Cell]:
    """Compute `averages` from task scores."""
    values = {
        task: {(str(place), ""): 100 * sample for place, sample in enumerate(score.samples)}
        for task, score in scores.items()
    }
    return averages(values, {task: score.counted for task, score in scores.items()})
