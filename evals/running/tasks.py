"""Run jobs on a task. Jobs that differ only in method, budget and protocol share each prompt's prefill and batch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from compresskv.budget import written
from compresskv.detokenise import asks_for_cleanup
from compresskv.engine.attention import attached
from compresskv.engine.contexts import ContextStore
from compresskv.engine.decode_eviction import refuse_scorer
from compresskv.engine.graph import graphs
from compresskv.engine.prefixes import PrefixStore, chunk_names, in_prefix_order
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.files import write_yaml
from evals.job import Entry, Job, State, Task
from evals.progress import Progress
from evals.results.finish import finish, refuse_foreign
from evals.results.lines import owner
from evals.results.store import SampleStore
from evals.results.verify import failed_of
from evals.running import export
from evals.running.batches import SettingRun, batches, check_prompts, run_batch
from evals.running.described import canonical, describe
from evals.running.forecast import forecast_of
from evals.running.methods import build_method, refuse_beyond_window, refuse_without_question
from evals.running.reference_answer import prepends_space

Fail = Callable[[Sequence[Job], Exception, str], None]
"""Callback for jobs that could not be run; takes the jobs, the error and the name of the task."""


def run_task(
    model: LoadedModel,
    jobs: Sequence[Job],
    tasks: Mapping[EvaluationProtocol, Task],
    progress: Progress,
    fail: Fail,
) -> list[Entry]:
    """Run every job on its protocol's task. Return an entry for each job whose samples were all tried; other jobs are
    passed to `fail`."""
    runs: dict[Path, SettingRun] = {}
    finished: list[Entry] = []
    asked: set[Any] = set()
    try:
        for job in jobs:
            task = tasks[job.protocol]
            try:
                if (job.protocol, job.eviction) not in asked:
                    refuse_without_question(job, task)
                    asked.add((job.protocol, job.eviction))
                setting, folder = setting_of(model, job, task)
                if folder not in runs:
                    runs[folder] = SettingRun(job, task, setting, open_store(model, job, task, setting))
                run = runs[folder]
                run.exports |= export.exports(job)
                if run.missing and not run.error:
                    try:
                        refuse_beyond_window(model, job, task.longest_prompt)
                    except UserError as error:
                        run.error = error
            except Exception as error:
                fail([job], error, task.name)
        try:
            check_prompts(list(runs.values()))
            if incomplete := [run for run in runs.values() if run.missing and not run.error]:
                _run_samples(model, [run for run in runs.values() if not run.error], incomplete, progress)
        except Exception as error:
            incomplete = [run for run in runs.values() if run.missing and not run.error]
            if not incomplete:
                raise
            fail([run.job for run in incomplete], error, incomplete[0].task.name)
        for run in runs.values():
            try:
                if run.error:
                    raise run.error
                if len(run.missing) == len(run.failures):
                    finished.append(_finish(model, run))
            except Exception as error:
                fail([run.job], error, run.task.name)
        return finished
    finally:
        for run in runs.values():
            run.store.close()


def _run_samples(
    model: LoadedModel, runs: Sequence[SettingRun], incomplete: Sequence[SettingRun], progress: Progress
) -> None:
    """Run every prompt that an `incomplete` run lacks, once for all `runs` that share it."""
    job, title = runs[0].job, f"{model.name} {runs[0].task.name}"
    settings, of_tasks = [run.setting for run in incomplete], {run.task for run in incomplete}
    contexts = any(run.job.eviction.before_question for run in incomplete)
    expected = forecast_of(model, job, settings, of_tasks, contexts, sequences=len(of_tasks))
    progress.say(f"{title}: {expected}")
    if files := [(run.setting, len(run.missing)) for run in incomplete if run.exports]:
        progress.say(f"{title}: {export.said(model, files, expected.length)}")
    tasks: dict[str, Task] = {}
    for run in runs:
        for id in run.ids:
            tasks.setdefault(id, run.task)
    order = list(tasks)
    if job.prefill_chunk is not None:  # order by shared prefixes, independently of what is finished
        order = in_prefix_order({id: chunk_names(tasks[id].sample(id).ids, job.prefill_chunk) for id in tasks})
    missing = {id for run in incomplete for id in run.missing}
    prefixes, stored = PrefixStore(expected.prefixes), ContextStore()
    todo = [id for id in order if id in missing]
    if contexts:
        todo = questions_together(tasks, todo)
    replay = graphs(model.model, job.engine.graph == "auto")
    with attached(model.model, model.backend), replay, progress.track(title, todo) as steps:
        for id in steps:
            for sample, batch in batches(id, [run for run in runs if id in run.ids and not run.error]):
                run_batch(model, sample, batch, prefixes, stored)
                if failures := [run.store.failures[id] for run in batch if id in run.store.failures]:
                    progress.say(f"{title}: {id} failed under {len(failures)} settings: {failures[0]['error']}")


def questions_together(tasks: Mapping[str, Task], ids: Sequence[str]) -> list[str]:
    """Order samples so that samples with the same context are adjacent, at the place of the first; `tasks` by
    sample."""
    groups: dict[bytes, list[str]] = {}
    for id in ids:
        sample = tasks[id].sample(id)
        context = sample.ids[: sample.context].cpu().numpy().tobytes()
        groups.setdefault(hashlib.sha256(context).digest(), []).append(id)
    return list(chain.from_iterable(groups.values()))


def _finish(model: LoadedModel, run: SettingRun) -> Entry:
    """Write the summary of a run whose samples were all tried, and return its entry."""
    job, ids = run.job, list(run.task.sample_ids)
    finish(run.store, ids, about(model, job, run.task, run.setting), job.results / "runs")
    state: State = "resumed" if run.resumed else "ran"
    note = f"{len(ids)} sample{'s' * (len(ids) != 1)}"
    if run.failures:
        state, note = "incomplete", f"of {len(ids)}, {failed_of(run.failures)}"
    elif run.resumed:
        note += f", {run.resumed} of them from before"
    place = (model.name, job.eval.name, run.task.name, job.name)
    return Entry(*place, state, note, folder=str(run.store.folder), samples=tuple(ids))


def setting_of(model: LoadedModel, job: Job, task: Task) -> tuple[Setting, Path]:
    """Build the setting of a job on a task; return it and the folder of its results."""
    setting = Setting(build_method(model, job, task), job.budget)
    refuse_scorer(setting, job.eviction)
    return setting, setting_folder(model, job, task, setting)


def open_store(model: LoadedModel, job: Job, task: Task, setting: Setting) -> SampleStore:
    """Open the store of a setting's folder, and write the job's configuration to the folder if it has no
    configuration."""
    folder, runs = setting_folder(model, job, task, setting), job.results / "runs"
    refuse_foreign(folder, about(model, job, task, setting), runs)
    store = SampleStore(folder, owner(folder, runs, model.fingerprint))
    if store.writable and not (folder / "config.yaml").exists():
        write_yaml(folder / "config.yaml", dict(job.config))
    return store


def setting_folder(model: LoadedModel, job: Job, task: Task, setting: Setting) -> Path:
    """Return the folder of a setting's results. Its hash covers all that can change a prediction or a line's fields."""
    identity = {
        "model": model.identity,
        "prompt": task.identity,
        "method": describe(setting.method),
        "generation": dict(model.settings(job.protocol.generation_config)),
        "prefill_chunk": job.prefill_chunk,
    }
    if job.eviction.when != "prompt":
        identity["when"] = job.eviction.when
    if job.eviction.decodes:
        identity["while_decoding"] = {"interval": job.eviction.interval, "protect": job.eviction.protect}
    if job.protocol.decode_cleanup and asks_for_cleanup(model.tokenizer):
        identity["decode_cleanup"] = True
    if job.fidelity:  # lines have more fields
        # For these tokenizers, earlier versions added an extra space to reference answers.
        identity["fidelity"] = "reference after its prompt" if prepends_space(model.tokenizer) else True
        if job.fidelity != "answer":
            identity["fidelity_tokens"] = job.fidelity
    digest = hashlib.sha256(canonical(identity, f"task {task.name}").encode()).hexdigest()[:8]
    budget = "none" if job.budget is None else job.budget
    parts = (model.name, job.eval.name, task.name, job.protocol.name, job.method.name, f"{budget}-{digest}")
    return job.results.joinpath("runs", *parts)


def about(model: LoadedModel, job: Job, task: Task, setting: Setting) -> dict[str, Any]:
    """Return the fields of a setting's summary that cannot be computed from its lines."""
    return {
        "model": model.name,
        "eval": job.eval.name,
        "task": task.name,
        "protocol": job.protocol.name,
        "method": job.method.name,
        "budget": written(job.budget),
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "backend": model.backend,
        "prompt": task.identity,
        "method_in_full": describe(setting.method),
        "config": dict(job.config),
    }
