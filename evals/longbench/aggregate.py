"""From sample scores to task scores, category averages and the 16-task average, with confidence intervals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evals.longbench.metrics import SampleScore, dataset_score
from evals.longbench.official import RowCheck
from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS, Task
from evals.results import statistics

Interval = tuple[float, float]


@dataclass(frozen=True)
class TaskScore:
    """One task's result: sample scores 0 to 1, `score` and `official` 0 to 100 with two decimals.

    `overflow` counts samples with a ROUGE pair that the official recursion may not get through; `official` is the score
    with those pairs at 0. `check` is None where the rows could not be compared with the official ones.
    """

    task: Task
    samples: tuple[float, ...]
    score: float
    official: float
    overflow: int
    check: RowCheck | None

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


@dataclass(frozen=True)
class Average:
    """Unweighted mean of task scores; `score` and `interval` are None as long as `problem` says what is missing."""

    name: str
    n: int
    score: float | None
    interval: Interval | None
    problem: str


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


def interval(scores: Sequence[TaskScore]) -> Interval | None:
    """95% percentile bootstrap interval, 0 to 100, of the mean of these task scores; None if a task has one sample.

    Samples are resampled within each task.
    """
    return statistics.interval(*([100 * sample for sample in score.samples] for score in scores))


def averages(scores: Mapping[str, TaskScore], beside: Collection[str] = ()) -> list[Average]:
    """The six category averages and the 16-task average, all over English tasks; the Chinese ones have no average.

    As in the published tables, each is the mean of rounded task scores. A category without any task, here or in
    `beside`, is left out.
    """
    groups = {category: [name for name in ENGLISH if TASKS[name].category == category] for category in CATEGORIES}
    rows = [_average(category, names, scores) for category, names in groups.items() if {*scores, *beside} & set(names)]
    return [*rows, _average("average of 16", ENGLISH, scores)]


def _average(name: str, tasks: Sequence[str], scores: Mapping[str, TaskScore]) -> Average:
    present = [scores[task] for task in tasks if task in scores]
    n = sum(len(score.samples) for score in present)
    complete = sum(not score.problem for score in present)
    if complete < len(tasks):
        return Average(name, n, None, None, f"incomplete: {complete} of {len(tasks)} tasks")
    mean = round(sum(score.score for score in present) / len(present), 2)
    return Average(name, n, mean, interval(present), "")
