"""Run any number of jobs: each model is loaded once, each evaluation shares its prefills, one report at the end."""

from collections.abc import Sequence

from compresskv import models
from evals import calibrate
from evals.job import Job
from evals.niah.task import NiahTask
from evals.progress import Progress
from evals.report import show
from evals.runner import Finished, run_task


def run(jobs: Sequence[Job]) -> None:
    """Run all jobs and show their results. Raises `UserError` for what cannot be run."""
    progress = Progress()
    finished: list[Finished] = []
    for model_config in dict.fromkeys(job.model for job in jobs):
        model = models.load(model_config)
        of_model = [job for job in jobs if job.model == model_config]
        for evaluation in dict.fromkeys(job.eval for job in of_model):
            group = [job for job in of_model if job.eval == evaluation]
            if evaluation.name == "calibrate":
                calibrate.run(model, group[0], progress)
            else:
                tasks = {job.protocol: NiahTask(evaluation, model, job.protocol) for job in group}
                finished += run_task(model, group, tasks, progress)
    if finished:
        show(finished)
