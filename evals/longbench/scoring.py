"""Score LongBench predictions with the values of the official eval.py (THUDM/LongBench, commit 2e00731).

The score of a sample is the best over its references; the score of a task is 100 x the mean over samples, rounded to
two decimals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evals.longbench.tasks import Task
from evals.metrics.longbench import METRICS, ROUGE


@dataclass(frozen=True)
class SampleScore:
    """Score of one sample, 0 to 1.

    `overflow` marks a ROUGE pair too deep for the recursion of the official evaluation, which then scores that pair 0;
    `official` is the sample's score with such pairs at 0 (otherwise equal to `score`).
    """

    score: float
    official: float
    overflow: bool


def score_sample(
    task: Task, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> SampleScore:
    """Return the best score of a prediction over its reference answers, after the task's post-processing.

    Classification tasks need `all_classes`, and references of retrieval tasks a paragraph.
    """
    prediction = post_process(task, prediction)
    if task.metric in ROUGE:
        pairs = [ROUGE[task.metric](prediction, answer) for answer in answers]
        best = max((pair.f for pair in pairs), default=0.0)
        official = max((pair.f for pair in pairs if not pair.overflow), default=0.0)
        return SampleScore(best, official, any(pair.overflow for pair in pairs))
    metric = METRICS[task.metric]
    best = max((metric(prediction, answer, all_classes) for answer in answers), default=0.0)
    return SampleScore(best, best, overflow=False)


def post_process(task: Task, prediction: str) -> str:
    """Return the part of a prediction to score: the first line in few-shot tasks, the whole text in other tasks."""
    return prediction.lstrip("\n").split("\n")[0] if task.first_line else prediction


def dataset_score(scores: Sequence[float]) -> float:
    """Return 100 x the mean of sample scores (0 to 1), rounded to two decimals; at least one sample."""
    total = 0.0
    for score in scores:  # plain left-to-right addition: `sum` compensates rounding errors from Python 3.12 on
        total += score
    return round(100 * total / len(scores), 2)
