"""Run any number of jobs: each model is loaded once, each evaluation shares its prefills, one report at the end."""

from collections.abc import Sequence
from contextlib import nullcontext

from compresskv.models import LoadedModel, ModelConfig
from evals.job import Job, MeasuredEvaluation, SampledEvaluation
from evals.progress import Progress
from evals.running import outcome
from evals.running.loading import load
from evals.running.outcome import Entry, Outcome
from evals.running.tasks import run_task


def run(jobs: Sequence[Job]) -> None:
    """Run all jobs and show what became of them. Raises `UserError` at the end if any failed."""
    outcome.show(entries_of(jobs), jobs[0].logger)


def entries_of(jobs: Sequence[Job]) -> list[Entry]:
    """Run all jobs; what became of each setting. A job that fails does not end the others."""
    for checked in dict.fromkeys(job.logger for job in jobs if job.logger):
        checked.check()
    sweep, logger = Outcome(), jobs[0].logger
    with logger.watched(jobs) if logger else nullcontext() as report:
        progress = Progress(report=report)
        for config in dict.fromkeys(job.model for job in jobs):
            of_model = [job for job in jobs if job.model == config]
            with sweep.guard(of_model):
                _run_model(config, of_model, sweep, progress)
    return sweep.entries


def _run_model(config: ModelConfig, jobs: Sequence[Job], sweep: Outcome, progress: Progress) -> None:
    model = load(config)
    for note in model.notes:
        progress.say(f"{model.name}: {note}")
    for evaluation in dict.fromkeys(job.eval for job in jobs):
        group = [job for job in jobs if job.eval == evaluation]
        with sweep.guard(group):
            if isinstance(evaluation, MeasuredEvaluation):
                sweep.add_measurement(group[0], evaluation.run(model, group, progress))
            else:
                assert isinstance(evaluation, SampledEvaluation)
                _run_tasks(model, evaluation, group, sweep, progress)


def _run_tasks(
    model: LoadedModel, evaluation: SampledEvaluation, jobs: Sequence[Job], sweep: Outcome, progress: Progress
) -> None:
    """Every task of an evaluation in turn, under all protocols of the jobs together."""
    protocols = list(dict.fromkeys(job.protocol for job in jobs))
    of_protocol = [evaluation.make_tasks(model, protocol) for protocol in protocols]
    for tasks in zip(*of_protocol, strict=True):
        with sweep.guard(jobs):
            sweep.add(run_task(model, jobs, dict(zip(protocols, tasks, strict=True)), progress, sweep.fail))
