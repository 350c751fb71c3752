"""Run any number of jobs: each model is loaded once, each evaluation shares its prefills, one report at the end."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.job import Entry, Evaluation, Job, MeasuredEvaluation, SampledEvaluation
from evals.progress import Progress
from evals.running import outcome
from evals.running.loading import load
from evals.running.tasks import run_task


def run(jobs: Sequence[Job]) -> None:
    """Run all jobs and show what became of them. Raises `UserError` at the end if any failed."""
    outcome.show(entries_of(jobs), jobs[0].logger)


def entries_of(jobs: Sequence[Job]) -> list[Entry]:
    """Run all jobs; what became of each setting. A job that fails does not end the others."""
    for checked in dict.fromkeys(job.logger for job in jobs if job.logger):
        checked.check()
    entries, logger = Entries(), jobs[0].logger
    with logger.watched(jobs) if logger else nullcontext() as report:
        progress = Progress(report=report)
        for config in dict.fromkeys(job.model for job in jobs):
            of_model = [job for job in jobs if job.model == config]
            with entries.guard(of_model):
                model = load(config)
                for note in model.notes:
                    progress.say(f"{model.name}: {note}")
                for evaluation in dict.fromkeys(job.eval for job in of_model):
                    group = [job for job in of_model if job.eval == evaluation]
                    with entries.guard(group):
                        _run_evaluation(model, evaluation, group, entries, progress)
    return entries


def _run_evaluation(
    model: LoadedModel, evaluation: Evaluation, jobs: Sequence[Job], entries: "Entries", progress: Progress
) -> None:
    if isinstance(evaluation, MeasuredEvaluation):
        written = str(evaluation.run(model, jobs, progress))
        name = evaluation.name
        entries.append(Entry(model.name, name, "", name, "ran", written, written=written))
        return
    assert isinstance(evaluation, SampledEvaluation)
    protocols = list(dict.fromkeys(job.protocol for job in jobs))
    of_protocol = [evaluation.make_tasks(model, protocol) for protocol in protocols]
    for tasks in zip(*of_protocol, strict=True):  # every task in turn, under all protocols together
        with entries.guard(jobs):
            entries += run_task(model, jobs, dict(zip(protocols, tasks, strict=True)), progress, entries.fail)


class Entries(list[Entry]):
    """What became of the settings of a sweep that goes on."""

    def fail(self, jobs: Sequence[Job], error: Exception, task: str = "") -> None:
        """Note jobs that `error` ended. A defect is shown at once, with its traceback."""
        mistake = isinstance(error, UserError)
        detail = "" if mistake else "".join(traceback.format_exception(error))
        sys.stderr.write(detail)
        note = str(error) if mistake else f"{type(error).__name__}: {error}".strip(": ")
        for name, job in {job.name: job for job in jobs}.items():
            self.append(Entry(job.model.name, job.eval.name, task, name, "failed", note, detail))

    @contextmanager
    def guard(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Within it, an error ends these jobs instead of the sweep."""
        try:
            yield
        except Exception as error:
            self.fail(jobs, error)
