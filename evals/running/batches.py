"""Run one prompt for all its settings: choose which settings decode together, and write their sample lines."""

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from compresskv.detokenise import text_of
from compresskv.engine.contexts import ContextStore
from compresskv.engine.generation import Generation, generate
from compresskv.engine.memory import ran_out
from compresskv.engine.prefill import PrefillError
from compresskv.engine.prefixes import PrefixStore
from compresskv.engine.setting import Setting
from compresskv.errors import NonFiniteError, PromptError, UserError
from compresskv.kept_tokens import prompt_sha256
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Job, Sample, Task
from evals.results.schema import FIDELITY, Line
from evals.results.store import SampleStore
from evals.running import export
from evals.running.methods import compressed_tokens, refuse_beyond_window
from evals.running.reference_answer import reference_tokens

TAIL = 200
"""Number of characters from the end of a prompt that are stored in its lines."""

CHECKED = 100_000
"""Approximate number of tokens of finished prompts that are rebuilt when a task is resumed, to check for changes."""


@dataclass(eq=False)
class SettingRun:
    """One job on one task. `error`: what ended it early; `exports`: whether kept tokens are written too."""

    job: Job
    task: Task
    setting: Setting
    store: SampleStore
    resumed: int = field(default=0, init=False)
    error: Exception | None = field(default=None, init=False)
    exports: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.resumed = sum(id in self.store.lines for id in self.ids)
        self.exports = export.exports(self.job)

    @cached_property
    def ids(self) -> dict[str, None]:
        """The ids of the task's samples, in its order."""
        return dict.fromkeys(self.task.sample_ids)

    @property
    def key(self) -> str:
        """The setting within the task: <protocol>/<method>/<budget>-<hash8>."""
        return "/".join(self.store.folder.parts[-3:])

    @property
    def missing(self) -> list[str]:
        """Ids of the samples that have no result yet."""
        return [id for id in self.ids if self.lacks(id)]

    def lacks(self, id: str) -> bool:
        """Whether a sample has no line, or no file of kept tokens where it should have one."""
        return id not in self.store.lines or (self.exports and not export.path_of(self.store.folder, id).exists())

    @property
    def failures(self) -> dict[str, Line]:
        """The lines of failed samples without a result."""
        return {id: self.store.failures[id] for id in self.missing if id in self.store.failures}


Batch = tuple[Sample, list[SettingRun]]


def batches(id: str, runs: Sequence[SettingRun]) -> Iterator[Batch]:
    """Yield the sample `id` with the runs to decode together, for each distinct token sequence.

    Runs that already have the sample are skipped. However, the composition of a batch can change a token in bfloat16,
    so all runs of a batch that was interrupted are decoded again. The full cache joins settings whose eviction
    continues while decoding.
    """
    samples: dict[Task, Sample] = {}
    by_tokens: dict[Any, Batch] = {}
    for run in sorted(runs, key=lambda run: run.job.budget is None):  # the full cache last
        if run.task not in samples:
            samples[run.task] = run.task.sample(id)
        sample = samples[run.task]
        if not _has_another_prompt(run, sample):
            job = run.job
            alike = (tuple(sample.ids.tolist()), sample.stopping, job.prefill_chunk, job.fidelity)
            key = (alike, job.eviction)
            if job.budget is None:  # the full cache evicts nothing while other settings decode
                key = next((one for one in by_tokens if one == (alike, one[1]) and one[1].once == job.eviction), key)
            by_tokens.setdefault(key, (sample, []))[1].append(run)
    for sample, sharing in by_tokens.values():
        keys = {run.key for run in sharing}
        missing = {run.key for run in sharing if run.lacks(id)}
        cut_short: list[set[str]] = []
        for run in sharing:
            before = set(run.store.lines.get(id, {}).get("batch", ()))
            if before & missing and before <= keys:
                cut_short.append(before)
                missing -= before
        for wanted in filter(None, (*cut_short, missing)):
            together = [run for run in sharing if run.key in wanted]
            # The full cache's control needs an evicting setting in the batch, even if this setting already has its
            # line.
            if together[0].job.fidelity and together[0].job.budget is None and sharing[0] not in together:
                together.insert(0, sharing[0])
            yield sample, together


def check_prompts(runs: Sequence[SettingRun]) -> None:
    """Rebuild `some` finished prompts, and set the `error` of each run that has a line made with a different prompt."""
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        finished = [id for id in task.sample_ids if any(id in run.store.lines for run in of_task)]
        for id in some(finished, task):
            sample = task.sample(id)
            for run in of_task:
                _has_another_prompt(run, sample)


def some(ids: Sequence[str], task: Task) -> Sequence[str]:
    """Return evenly spread samples of a task, at least two, with about `CHECKED` tokens in total or fewer."""
    count = max(2, CHECKED // max(1, task.longest_prompt))
    return ids[:: -(-len(ids) // count)] if ids else ids


def _has_another_prompt(run: SettingRun, sample: Sample) -> bool:
    """Return whether a run has a line of this sample made with a different prompt, and set its `error` if so."""
    try:
        refuse_another_prompt(run.store, sample)
    except UserError as error:
        run.error = error
        return True
    return False


def refuse_another_prompt(store: SampleStore, sample: Sample) -> None:
    """Raise `UserError` if the `store` has a line of this sample that was made with a different prompt."""
    known = store.lines.get(sample.id, {}).get("prompt_sha256")
    if known is not None and known != prompt_sha256(sample.ids):
        raise UserError(
            "paths.results",
            "set another folder, or delete this folder to run all its samples again",
            value=store.path,
            why=f"the prompt of sample {sample.id} has changed since it was finished, although its folder is the same",
        )


def run_batch(
    model: LoadedModel,
    sample: Sample,
    batch: Sequence[SettingRun],
    prefixes: PrefixStore | None = None,
    contexts: ContextStore | None = None,
) -> None:
    """Generate with all settings of `batch`, and append their lines.

    If this prompt cannot be answered, the reason is written to its line and the run continues. Any other failure is set
    as the run's `error`.
    """
    started = time.perf_counter()
    settings, job = [run.setting for run in batch], batch[0].job
    context_only = job.eviction.before_question
    failure = None
    try:
        compressed = compressed_tokens(job, sample)
        refuse_beyond_window(model, job, sample.ids.numel())
        generations = generate(
            model.model,
            sample.ids,
            settings,
            sample.stopping,
            chunk=job.prefill_chunk,
            memory=job.memory_bytes,
            reference=reference_tokens(model, sample) if job.fidelity else None,
            prefixes=prefixes,
            context=compressed if context_only else None,
            contexts=contexts if context_only else None,
            schedule=job.eviction,
            along=None if job.fidelity == "answer" else job.fidelity,
        )
    except Exception as error:
        _release_memory(error)
        failure = error
    if contexts and failure:
        contexts.close()
    if failure and prefixes and prefixes.nbytes and (ran_out(failure) or ran_out(failure.__cause__)):
        prefixes.close()  # retry without cached prefixes, so that no prompt fails because of their memory
        run_batch(model, sample, batch)
        return
    if isinstance(failure, PrefillError) or (failure and len(batch) == 1):
        for run in batch:
            _fail(run, sample, failure)
        return
    if failure:  # one setting failed: run each setting alone, so that the other settings succeed
        for run in batch:
            others: list[SettingRun] = []
            if run.job.budget is None and len(batch) > 2:  # its control needs another setting
                others = [one for one in batch if one is not run and not one.lacks(sample.id)][:1]
            run_batch(model, sample, [*others, run], prefixes, contexts)
        return
    seconds = time.perf_counter() - started
    for run, generation in zip(batch, generations, strict=True):
        if not run.lacks(sample.id):
            continue
        keys = [batch[place].key for place in generation.together]
        timing = {"batch_seconds": round(seconds, 3), "shared_by": len(batch)}
        try:
            line = sample_line(model, sample, generation, run.job.protocol, compressed)
            known = run.store.lines.get(sample.id)
            if run.exports:  # before the line, so that no finished sample lacks it
                try:
                    if known and known.get("kept", line["kept"]) != line["kept"]:
                        why = f"sample {sample.id} keeps different numbers of tokens than when it was finished"
                        fix = "set export.kept=false, or paths.results to another folder"
                        raise UserError("export.kept", fix, value=True, why=why)
                    export.write(model, run.store.folder, run.job, sample, generation, compressed, later=bool(known))
                except UserError as error:  # of this setting; the other settings write their lines
                    run.error = error
                    continue
            if not known:
                run.store.append(line | {"batch": keys, "timing": timing})
        except NonFiniteError as error:
            _fail(run, sample, error)


def _fail(run: SettingRun, sample: Sample, failure: Exception) -> None:
    """Record why a run has no result for `sample`: in a line if other prompts may succeed, else as its `error`.

    A run that already has a result was only decoded for the other runs of its batch, so nothing is recorded for it.
    """
    if not run.lacks(sample.id):
        return
    if no_answer(failure) and sample.id not in run.store.lines:
        run.store.append(failed_line(sample, failure))
    else:
        run.error = failure


def no_answer(failure: Exception) -> bool:
    """Return whether `failure` concerns only this prompt, so that other prompts may succeed."""
    return isinstance(failure, PromptError) or ran_out(failure)


def failed_line(sample: Sample, failure: Exception) -> Line:
    """Return the line of a failed sample."""
    sentence = str(failure) if isinstance(failure, PromptError) else f"out of memory ({type(failure).__name__})"
    return {"id": sample.id, "error": sentence, **sample.record}


def sample_line(
    model: LoadedModel, sample: Sample, generation: Generation, protocol: EvaluationProtocol, compressed: int
) -> Line:
    """Return the line of one sample under one setting. `compressed`: number of prompt tokens subject to eviction."""
    prediction = text_of(generation.tokens, model.tokenizer, protocol.decode_cleanup)
    scores = sample.score(prediction).items()
    line = {
        "id": sample.id,
        "prediction": prediction,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in scores},
        **sample.record,
        "prompt_tail": model.tokenizer.decode(sample.ids[-TAIL:])[-TAIL:],
        "prompt_sha256": prompt_sha256(sample.ids),
        "new_tokens": len(generation.tokens),
        "realised_budget": generation.realised_budget,
        "cache_bytes": generation.cache_bytes,
    }
    if sliding := generation.sliding_bytes:
        line["total_cache_bytes"] = generation.cache_bytes + sliding
    # One number per layer, or one per KV head if they differ.
    line["kept"] = [heads[0] if len(set(heads)) == 1 else heads for heads in generation.kept]
    # Without layers that evict, the budget is 0.
    line["compressed"] = (bool(line["kept"]) and generation.realised_budget < compressed) or generation.evicted_later
    if compressed < sample.ids.numel():
        line["context_tokens"] = compressed
    if generation.peak_kept is not None:
        line["peak_kept"] = round(generation.peak_kept, 3)
    if measured := generation.fidelity:
        for name in FIDELITY:
            value = getattr(measured, name)
            line[name] = None if value is None else _rounded(value, 6)
        line["kl_per_token"] = [_rounded(value, 4) for value in measured.kl_per_token]
        if control := measured.control:
            line["control_agreement"] = round(control.agreement, 6)
            line["control_kl_per_token"] = [float(f"{value:.3g}") for value in control.kl_per_token]
    return line


def _rounded(value: float, digits: int) -> float:
    """Round, without a negative zero: rounding errors can make a KL divergence of zero slightly negative."""
    return round(value, digits) + 0.0


def _release_memory(error: BaseException | None) -> None:
    """Free the objects that the frames of an error hold, such as the cache of a whole prompt."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
