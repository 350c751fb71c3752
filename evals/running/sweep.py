"""Run any number of jobs. Each model is loaded once, each evaluation shares its prefills, and one report is shown."""

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
    """Run all jobs and show their outcome. Raises `UserError` at the end if a job failed or is incomplete."""
    outcome.show(entries_of(jobs), jobs[0].logger)


def entries_of(jobs: Sequence[Job]) -> list[Entry]:
    """Run all jobs and return the outcome of each setting. A job that fails does not stop the other jobs."""
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
    for tasks in zip(*of_protocol, strict=True):  # one task at a time, under all protocols
        with entries.guard(jobs):
            entries += run_task(model, jobs, dict(zip(protocols, tasks, strict=True)), progress, entries.fail)


class Entries(list[Entry]):
    """Outcomes of the settings of a running sweep."""

    def fail(self, jobs: Sequence[Job], error: Exception, task: str = "") -> None:
        """Record jobs that `error` ended. Unless it is a `UserError`, it is a defect: print its traceback at once."""
        mistake = isinstance(error, UserError)
        detail = "" if mistake else "".join(traceback.format_exception(error))
        sys.stderr.write(detail)
        note = str(error) if mistake else f"{type(error).__name__}: {error}".strip(": ")
        for name, job in {job.name: job for job in jobs}.items():
            self.append(Entry(job.model.name, job.eval.name, task, name, "failed", note, detail))

    @contextmanager
    def guard(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Record an error inside the block as a failure of these jobs, so that the sweep continues."""
        try:
            yield
        except Exception as error:
            self.fail(jobs, error)
