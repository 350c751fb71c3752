"""Run jobs: those that differ only in method, budget and protocol share each prompt's prefill and its decode batch."""

import dataclasses
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.registry import build
from compresskv import calibration
from compresskv.attention import attached
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod
from compresskv.generation import Generation, PrefillError, Setting, generate
from compresskv.models import LoadedModel
from evals.forecast import forecast
from evals.job import Job
from evals.progress import Progress
from evals.results.store import Line, SampleStore, close_all, write_json, write_yaml
from evals.results.summary import environment, mean_and_interval
from evals.task import Sample, Task


@dataclass(eq=False)
class Run:
    """One job on one task: its setting, and the folder that its samples go to."""

    job: Job
    task: Task
    setting: Setting
    key: str
    store: SampleStore
    resumed: int
    error: Exception | None = None

    @property
    def missing(self) -> list[str]:
        return [id for id in self.task.sample_ids if id not in self.store.lines]


@dataclass(frozen=True)
class Finished:
    """A job's summary and the sample lines it covers."""

    job: Job
    summary: dict[str, Any]
    lines: list[Line]
    breakdown: dict[str, float]
    folder: Path
    resumed: int = 0


def run_task(
    model: LoadedModel,
    jobs: Sequence[Job],
    tasks: Mapping[Any, Task],
    progress: Progress,
    fail: Callable[[Sequence[Job], Exception, str], None],
) -> list[Finished]:
    """Run every job on its protocol's task; returns what each has, resumed samples included.

    Jobs that cannot be built, and those that an error leaves incomplete, go to `fail`.
    """
    runs: dict[Path, Run] = {}
    try:
        for job in jobs:
            try:
                run = _open(model, job, tasks[job.protocol], runs)
            except Exception as error:
                fail([job], error, tasks[job.protocol].name)
            else:
                runs.setdefault(run.store.folder, run)
        try:
            if runs:
                _run_samples(model, list(runs.values()), progress)
        except Exception as error:
            incomplete = [run for run in runs.values() if run.missing and not run.error]
            if not incomplete:
                raise
            fail([run.job for run in incomplete], error, incomplete[0].task.name)
        for run in runs.values():
            if run.error:
                fail([run.job], run.error, run.task.name)
        return [_finish(model, run) for run in runs.values() if not run.missing]
    finally:
        close_all(run.store for run in runs.values())


def _open(model: LoadedModel, job: Job, task: Task, opened: Mapping[Path, Run]) -> Run:
    method = build_method(model, job, task.first_prompt)
    setting = Setting(method, job.budget)
    identity = {
        "model": model.identity,
        "prompt": task.identity,
        "method": describe(method),
        "prefill_chunk": job.prefill_chunk,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
    budget = "none" if job.budget is None else job.budget
    parts = (model.name, job.eval.name, task.name, job.protocol.name, job.method.name, f"{budget}-{digest}")
    folder = job.results.joinpath("runs", *parts)
    if folder in opened:
        return opened[folder]
    store = SampleStore(folder)
    write_yaml(folder / "config.yaml", dict(job.config))
    run = Run(job, task, setting, "/".join(parts[3:]), store, 0)
    run.resumed = len(task.sample_ids) - len(run.missing)
    return run


def build_method(model: LoadedModel, job: Job, first_prompt: Callable[[], int] | None = None) -> EvictionMethod:
    """The job's method with what it has to know of the model: its one way from configuration and calibration.

    `first_prompt` gives the length of the task's first prompt; without a task, a prompt is its own first.
    """
    if model.layers == 0 and job.budget is not None:
        raise UserError(f"{model.name} has sliding-window layers only, so there is nothing to evict: use method=full")
    context = Context(
        model=model.name,
        layers=model.layers,
        q_heads=model.q_heads,
        kv_heads=model.kv_heads,
        observation=job.observation,
        protocol=job.protocol,
        calibration=_calibration(job),
        first_prompt=first_prompt() if first_prompt and job.protocol.pyramid_schedule == "first_prompt" else None,
    )
    return build(job.method, context)


def _calibration(job: Job) -> calibration.Calibration | None:
    if job.calibration != "auto":
        return calibration.find(job.model.name, job.calibration)
    sources = ["held_out"] if job.protocol.calibration_data == "held_out" else ["longbench", "published"]
    return next((found for s in sources if (found := calibration.find(job.model.name, s))), None)


def describe(value: Any) -> Any:
    """A method, in full, as plain data: class names and field values."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _run_samples(model: LoadedModel, runs: Sequence[Run], progress: Progress) -> None:
    ids_of = {run.key: dict.fromkeys(run.task.sample_ids) for run in runs}
    going = [run for run in runs if run.missing]
    missing = {id for run in going for id in run.missing}
    todo = [id for id in dict.fromkeys(id for ids in ids_of.values() for id in ids) if id in missing]
    title = f"{model.name} {runs[0].task.name}"
    if going:
        progress.say(f"{title}: {_forecast(model, going)}")
    with attached(model.model, model.backend), progress.track(title, todo) as steps:
        for id in steps:
            for sample, batch in _batches(id, [run for run in runs if id in ids_of[run.key] and not run.error]):
                _run_sample(model, sample, batch)


def _forecast(model: LoadedModel, runs: Sequence[Run]) -> str:
    length, room = max(run.task.longest_prompt for run in runs), max(run.task.max_new_tokens for run in runs)
    job = runs[0].job
    return forecast(model.model, [run.setting for run in runs], length, room, job.prefill_chunk, job.memory_bytes)


def _batches(id: str, runs: Sequence[Run]) -> Iterable[tuple[Sample, list[Run]]]:
    """The sample under each distinct token sequence, with the runs that still need it.

    A batch's composition can change a token in bfloat16, so where one was cut short, all of it is decoded again.
    """
    samples: dict[Task, Sample] = {}
    by_tokens: dict[Any, tuple[Sample, list[Run]]] = {}
    for run in runs:
        if run.task not in samples:
            samples[run.task] = run.task.sample(id)
        sample = samples[run.task]
        key = (tuple(sample.ids.tolist()), sample.stopping, run.job.prefill_chunk)
        by_tokens.setdefault(key, (sample, []))[1].append(run)
    for sample, group in by_tokens.values():
        present = {run.key for run in group}
        missing = {run.key for run in group if id not in run.store.lines}
        cut_short = []
        for run in group:
            before = set(run.store.lines.get(id, {}).get("batch", ()))
            if before & missing and before <= present:
                cut_short.append(before)
                missing -= before
        for keys in filter(None, (*cut_short, missing)):
            yield sample, [run for run in group if run.key in keys]


def _run_sample(model: LoadedModel, sample: Sample, batch: Sequence[Run]) -> None:
    started = time.perf_counter()
    settings, job = [run.setting for run in batch], batch[0].job
    failed = None
    try:
        generations = generate(model.model, sample.ids, settings, sample.stopping, job.prefill_chunk, job.memory_bytes)
    except Exception as error:
        _let_go(error)
        failed = error
    if isinstance(failed, PrefillError) or (failed and len(batch) == 1):
        for run in batch:
            run.error = failed
        return
    if failed:  # one of them fails: alone, the others do not
        for run in batch:
            _run_sample(model, sample, [run])
        return
    seconds = time.perf_counter() - started
    prompt_sha = hashlib.sha256(sample.ids.cpu().numpy().tobytes()).hexdigest()[:16]
    for run, generation in zip(batch, generations, strict=True):
        if sample.id in run.store.lines:
            continue
        prediction = model.tokenizer.decode(generation.tokens, skip_special_tokens=True)
        run.store.append(
            {
                "id": sample.id,
                "prediction": prediction,
                **{name: _rounded(value) for name, value in sample.score(prediction).items()},
                **sample.record,
                "prompt_sha256": prompt_sha,
                "new_tokens": len(generation.tokens),
                "realised_budget": generation.realised_budget,
                "cache_bytes": generation.cache_bytes,
                "kept": _kept(generation),
                "compressed": generation.realised_budget < sample.ids.numel(),
                "batch": [batch[place].key for place in generation.together],
                "timing": {"batch_seconds": round(seconds, 3), "shared_by": len(batch)},
            }
        )


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold: a whole prompt's cache, among others."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _kept(generation: Generation) -> list[Any]:
    """Kept tokens of each layer: one number, or one a KV head where they differ."""
    return [heads[0] if len(set(heads)) == 1 else heads for heads in generation.kept]


def seconds(line: Line) -> float:
    """A sample's share of the time that its prompt took for all settings."""
    timing = line["timing"]
    return timing["batch_seconds"] / timing.get("shared_by", len(line["batch"]))


def _finish(model: LoadedModel, run: Run) -> Finished:
    lines = [run.store.lines[id] for id in run.task.sample_ids if id in run.store.lines]
    score, interval = mean_and_interval([line["score"] for line in lines])
    job, path = run.job, run.store.folder / "summary.json"
    # Where nothing ran now, the samples are those of the environment that is named already.
    before = json.loads(path.read_text()) if path.exists() and run.resumed == len(lines) else {}
    summary = {
        "model": model.name,
        "eval": job.eval.name,
        "task": run.task.name,
        "protocol": job.protocol.name,
        "method": job.method.name,
        "budget": job.budget,
        "score": score,
        "interval": interval,
        "n": len(lines),
        "realised_budget": round(sum(line["realised_budget"] for line in lines) / len(lines), 3),
        "cache_bytes": round(sum(line["cache_bytes"] for line in lines) / len(lines)),
        "uncompressed": sum(not line["compressed"] for line in lines),
        "truncated": sum(line["truncated"] for line in lines),
        "scores": {
            name: round(sum(line[name] for line in lines) / len(lines), 2)
            for name in lines[0]
            if name.startswith("score_") and all(name in line for line in lines)
        },
        "samples": [line["id"] for line in lines],
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "backend": model.backend,
        "prompt": run.task.identity,
        "method_in_full": describe(run.setting.method),
        "config": dict(job.config),
        "environment": before.get("environment") or environment(),
        "timing": {"seconds": round(sum(map(seconds, lines)), 2)},
    }
    write_json(path, summary)
    return Finished(job, summary, lines, run.task.breakdown(lines), run.store.folder, run.resumed)
