"""Estimate the cost of a run or a sweep without running it: prompts, tokens, settings, memory, and measured hours.

`+plan=true` prints the estimate. Finished samples are not counted, and no results are written. Protocols are counted
separately, although equal prompts are shared between protocols in a run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.table import Table
from rich.text import Text

from compresskv import models
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.graph import graphs
from compresskv.engine.rotary import uncrossed
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.console import screen
from evals.job import Job, MeasuredEvaluation, SampledEvaluation, Task, Work
from evals.progress import Progress
from evals.results.record import Record
from evals.running import export
from evals.running.forecast import Forecast, forecast_of
from evals.running.methods import refuse_beyond_window, refuse_without_question
from evals.running.tasks import setting_of

COUNTED = 8
"""Number of prompts per task whose tokens are counted; the other prompts are assumed to have the same mean length."""

MEASURED = 4096
"""Maximum tokens of the timed prompt; the time of longer prompts is scaled with their number of operations."""

WARM_UP = 256
"""Tokens of the untimed warm-up prompt."""

STEPS = 8
"""Number of timed decoding steps."""


@dataclass(frozen=True)
class Speed:
    """Measured seconds of a prompt of `length` tokens until its first new token, and of each decoding step."""

    length: int
    prompt: float
    step: float

    def seconds(self, work: Work) -> float:
        """Return the seconds for all prompts of `work` if every answer has the maximum length."""
        new_tokens = work.jobs[0].new_tokens(work.task)
        scale = operations(work.model, mean_length(work)) / operations(work.model, self.length)
        return len(work.prompts) * (scale * self.prompt + work.times * new_tokens * self.step)


def mean_length(work: Work) -> float:
    """Return the mean length in tokens of evenly spread prompts."""
    some = work.prompts[:: -(-len(work.prompts) // COUNTED)]
    return fmean(work.task.sample(id).ids.numel() for id in some)


def plan(jobs: Sequence[Job]) -> None:
    """Print the estimate for these jobs. Raises `UserError` for jobs that cannot be run or estimated."""
    progress = Progress()
    rows: list[tuple[Work, Forecast, float]] = []
    for config in dict.fromkeys(job.model for job in jobs):
        of_model = [job for job in jobs if job.model == config]
        progress.say(f"{config.name}: loading")
        model = models.load(config)
        progress.say(f"{config.name}: looking for missing samples")
        speeds: dict[tuple[Job, ...], Speed] = {}
        with progress.track(f"{config.name}: planning", works(model, of_model), "tasks") as missing:
            for work in missing:
                key = tuple(work.jobs)
                if key not in speeds:
                    progress.say(f"{config.name}: timing one prompt of {work.name}, {len(work.settings)} settings")
                    speeds[key] = measure(work)
                job, contexts = work.jobs[0], work.jobs[0].eviction.before_question
                expected = forecast_of(work.model, job, work.settings, [work.task], contexts)
                rows.append((work, expected, speeds[key].seconds(work)))
    screen().print(table(rows) if rows else "all samples are finished: nothing is left to run")
    for work, *_ in rows:
        sizes = zip(work.jobs, work.settings, strict=True)
        if files := [(setting, len(work.prompts)) for job, setting in sizes if export.exports(job)]:
            progress.say(f"{work.model.name} {work.name}: {export.said(work.model, files, work.task.longest_prompt)}")


def works(model: LoadedModel, jobs: Sequence[Job]) -> list[Work]:
    """Return the missing work of every task, for the jobs that share its prefills; finished tasks are left out."""
    alike: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.eval, job.protocol, job.prefill_chunk, job.fidelity, job.eviction), []).append(job)
    missing: list[Work] = []
    for sharing in alike.values():
        evaluation = sharing[0].eval
        if isinstance(evaluation, MeasuredEvaluation):
            missing += evaluation.plan(model, sharing)
        else:
            assert isinstance(evaluation, SampledEvaluation)
            tasks = evaluation.make_tasks(model, sharing[0].protocol)
            missing += filter(None, (_work(model, task, sharing) for task in tasks))
    return missing


def _work(model: LoadedModel, task: Task, jobs: Sequence[Job]) -> Work | None:
    incomplete: dict[Path, tuple[Job, Setting]] = {}
    prompts: set[str] = set()
    asked: set[Path] = set()
    refuse_without_question(jobs[0], task)
    refuse_beyond_window(model, jobs[0], task.longest_prompt)
    for job in jobs:
        setting, folder = setting_of(model, job, task)
        asked.add(folder)
        if missing := missing_of(task, folder, job):
            incomplete.setdefault(folder, (job, setting))
            prompts.update(missing)
    if not prompts:
        return None
    jobs, settings = zip(*incomplete.values(), strict=True)
    finished = len(asked) - len(incomplete)
    return Work(model, task.name, task, jobs, settings, [id for id in task.sample_ids if id in prompts], 1, finished)


def missing_of(task: Task, folder: Path, job: Job) -> list[str]:
    """Return the samples that have no result in a setting's folder. Raises `UserError` for lines that a run rejects."""
    there = Record(folder, job.results / "runs")
    for number, fault in there.line_faults.items():
        raise UserError(
            None, "run it without plan=true to see the fix", why=fault, where=f"{folder / 'samples.jsonl'}:{number}"
        )
    lacking = {id for id in task.sample_ids if export.exports(job) and not export.path_of(folder, id).exists()}
    return [id for id in task.sample_ids if id in lacking or id not in there.samples]


def measure(work: Work) -> Speed:
    """Time one prompt of `work` with all its settings."""
    job = work.jobs[0]
    ids = work.task.sample(work.prompts[len(work.prompts) // 2]).ids[:MEASURED]
    replay = graphs(work.model.model, job.engine.graph == "auto")
    with attached(work.model.model, work.model.backend), replay:
        ids = ids[: uncrossed(work.model.model, ids.numel(), 1 + STEPS)]
        _seconds(work, job, ids[:WARM_UP], 1)
        one = _seconds(work, job, ids, 1)
        step = max(_seconds(work, job, ids, 1 + STEPS) - one, 0.0) / STEPS
    return Speed(ids.numel(), max(one - step, 0.0), step)


def _seconds(work: Work, job: Job, ids: torch.Tensor, steps: int) -> float:
    """Return the seconds for exactly `steps` new tokens; with fidelity, also for a reference answer of that length."""
    reference = ids[:steps].tolist() if job.fidelity else None
    started = time.perf_counter()
    generate(
        work.model.model,
        ids,
        work.settings,
        Stopping(steps),
        chunk=job.prefill_chunk,
        memory=job.memory_bytes,
        reference=reference,
    )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def operations(model: LoadedModel, length: float) -> float:
    """Return the floating-point operations of a prefill: two per weight and token, plus the causal attention."""
    config = model.model.config.get_text_config(decoder=True)
    weights = sum(parameter.numel() for parameter in model.model.get_decoder().layers.parameters())
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return 2 * weights * length + 2 * config.num_hidden_layers * width * length**2


def table(rows: Sequence[tuple[Work, Forecast, float]]) -> Table:
    """Return a table with a row for each work and one for the total."""
    shown = Table(
        title="plan: nothing was run",
        caption="hours on this device, estimated from one measured prompt, with answers of the maximum length; without "
        "loading"
        + (
            "; * may not fit: see memory and prefill_chunk" if any(not expected.fits for _, expected, _ in rows) else ""
        ),
    )
    for column in ("model", "task", "protocol"):
        shown.add_column(column, no_wrap=True)
    for column in ("settings", "prompts", "tokens", "longest", "new tokens", "peak GB", "hours"):
        shown.add_column(column, justify="right")
    for work, expected, seconds in rows:
        job = work.jobs[0]
        about = "" if len(work.prompts) <= COUNTED else "~"
        shown.add_row(
            Text(work.model.name),
            Text(" ".join(dict.fromkeys((job.eval.name, work.name)))),
            Text(job.protocol.label),
            f"{len(work.settings) * work.times:g}" + (f", {work.finished} finished" if work.finished else ""),
            f"{len(work.prompts)}" + (f" of {of}" if (of := len(work.task.sample_ids)) > len(work.prompts) else ""),
            f"{about}{round(mean_length(work) * len(work.prompts))}",
            str(work.task.longest_prompt),
            str(work.task.max_new_tokens),
            f"{expected.peak / 1e9:.2f}" + ("" if expected.fits else "*"),
            f"{seconds / 3600:.3f}",
        )
    shown.add_section()
    prompts, hours = sum(len(work.prompts) for work, *_ in rows), sum(seconds for *_, seconds in rows) / 3600
    shown.add_row("all", "", "", "", str(prompts), "", "", "", "", f"{hours:.3f}")
    return shown
