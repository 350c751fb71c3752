"""Run any number of jobs: each model is loaded once, each evaluation shares its prefills, one report at the end."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from compresskv import models
from compresskv.engine.prefill import FULL, Setting
from compresskv.errors import UserError
from compresskv.models import LoadedModel, ModelConfig
from evals import calibrate, calibrate_longbench, efficiency, outcome
from evals.calibrate import CalibrateConfig
from evals.efficiency import Contender, EfficiencyConfig
from evals.job import Job
from evals.longbench.data import open_source
from evals.longbench.task import LongBenchConfig, LongBenchTask
from evals.longbench.tasks import select_tasks
from evals.niah.task import NiahConfig, NiahTask
from evals.outcome import Outcome
from evals.progress import Progress
from evals.runner import build_method, run_task
from evals.task import TaskFactory


def run(jobs: Sequence[Job], outcome_file: Path | None = None) -> None:
    """Run all jobs and show what became of them, in `outcome_file` too. A job that fails does not end the others.

    Raises `UserError` at the end if any failed.
    """
    sweep, progress = Outcome(), Progress()
    for config in dict.fromkeys(job.model for job in jobs):
        of_model = [job for job in jobs if job.model == config]
        with sweep.guard(of_model):
            _run_model(config, of_model, sweep, progress)
    if outcome_file:
        outcome.save(sweep.entries, outcome_file)
    outcome.show(sweep.entries, sweep.finished)


def _run_model(config: ModelConfig, jobs: Sequence[Job], sweep: Outcome, progress: Progress) -> None:
    model = models.load(config)
    for evaluation in dict.fromkeys(job.eval for job in jobs):
        group = [job for job in jobs if job.eval == evaluation]
        with sweep.guard(group):
            _run_group(model, group, sweep, progress)


def _run_group(model: LoadedModel, group: Sequence[Job], sweep: Outcome, progress: Progress) -> None:
    first, config = group[0], group[0].eval
    if isinstance(config, CalibrateConfig):
        calibration_of = {"held_out": calibrate.run, "longbench": calibrate_longbench.run}
        if config.source not in calibration_of:
            raise UserError(f"eval.source={config.source}: choose one of {', '.join(calibration_of)}")
        written = calibration_of[config.source](model, config, first.observation, first.results, progress)
        return sweep.done(first, str(written))
    if isinstance(config, EfficiencyConfig):
        written = efficiency.run(model, config, _contenders(model, group), first.results, progress)
        return sweep.done(first, str(written))
    for make in _tasks(config):
        with sweep.guard(group):
            tasks = {protocol: make(model, protocol) for protocol in dict.fromkeys(job.protocol for job in group)}
            sweep.add(run_task(model, group, tasks, progress, sweep.fail))


def _contenders(model: LoadedModel, group: Sequence[Job]) -> dict[str, Contender]:
    """What an efficiency run measures, by name: the full cache first."""
    chunks = {job.prefill_chunk for job in group}

    def label(name: str, chunk: int | None) -> str:
        return name if len(chunks) == 1 else f"{name}, chunks of {chunk}" if chunk else f"{name}, one chunk"

    found = {label("full", group[0].prefill_chunk): Contender(FULL, group[0].prefill_chunk)}
    for job in group:
        name = label(outcome.setting_name(job), job.prefill_chunk)
        same = sum(taken.split(" #")[0] == name for taken in found)
        contender = Contender(Setting(build_method(model, job), job.budget), job.prefill_chunk)
        found[f"{name} #{same + 1}" if same else name] = contender
    return found


def _tasks(config: NiahConfig | LongBenchConfig) -> list[TaskFactory]:
    """What makes each task of an evaluation for a model and a protocol."""
    if isinstance(config, NiahConfig):
        return [partial(NiahTask, config)]
    folder = open_source(config.data, sha256=config.sha256, revision=config.revision)
    return [partial(LongBenchTask, config, task, folder) for task in select_tasks(config.tasks)]
