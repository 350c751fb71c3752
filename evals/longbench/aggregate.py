"""Task scores, category averages and the average of 16 tasks from sample scores, with confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.longbench.metrics import SampleScore, dataset_score
from evals.longbench.official import RowCheck
from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS, Task
from evals.tables import statistics
from evals.tables.table import Cell, Key

AVERAGE_OF_16 = "average of 16"

BY_CATEGORY = {category: (category,) for category in CATEGORIES}


@dataclass(frozen=True)
class TaskScore:
    """One task's result: `samples` 0 to 1, `score` and `official` 0 to 100 with two decimals.

    `overflow`: samples with a ROUGE pair that may exceed the official recursion limit; `official`: the score with those
    pairs at 0. `check` is None if the rows could not be compared with the official ones.
    """

    task: Task
    samples: tuple[float, ...]
    score: float
    official: float
    overflow: int
    check: RowCheck | None

    @property
    def counted(self) -> int:
        """How many samples are official rows, as far as known."""
        return max(len(self.samples) - (self.check.mismatching if self.check else 0), 0)

    @property
    def problem(self) -> str:
        """Why this is not a score on the official test set; "" if it is."""
        n, official = len(self.samples), self.task.n
        foreign = self.check.mismatching if self.check else 0
        if n < official:
            which = f", {'none' if foreign == n else f'{n - foreign}'} of them official" if foreign else ""
            return f"incomplete: {n} of {official} rows{which}"
        if n > official:
            return f"{n} rows instead of {official}"
        return f"{foreign} rows are not official" if foreign else ""


def task_score(task: Task, samples: Sequence[SampleScore], check: RowCheck | None = None) -> TaskScore:
    """Aggregate at least one sample."""
    return TaskScore(
        task=task,
        samples=tuple(sample.score for sample in samples),
        score=dataset_score([sample.score for sample in samples]),
        official=dataset_score([sample.official for sample in samples]),
        overflow=sum(sample.overflow for sample in samples),
        check=check,
    )


def interval(score: TaskScore) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval, 0 to 100, of a task score; None for a single sample."""
    return statistics.interval([100 * sample for sample in score.samples])


def averages(
    values: Mapping[str, Mapping[Key, float]],
    counted: Mapping[str, int],
    official: Mapping[str, int] | None = None,
    groups: Mapping[str, Sequence[str]] = BY_CATEGORY,
) -> dict[str, Cell]:
    """The means of each of the `groups` of categories, and of the 16 English tasks.

    Each is the unweighted mean of rounded task scores, as in published tables. `values`: of the samples by task, of
    which `counted` are official; `official`: rows of a task, if not the usual number. A mean is partial unless it
    covers all official rows of all its tasks; a group without any task is left out.
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
    """`averages` of task scores."""
    values = {
        task: {(str(place), ""): 100 * sample for place, sample in enumerate(score.samples)}
        for task, score in scores.items()
    }
    return averages(values, {task: score.counted for task, score in scores.items()})
