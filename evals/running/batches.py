"""One prompt for all its settings: which of them decode together, and their sample lines."""

import hashlib
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
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Job, Sample, Task
from evals.results.schema import FIDELITY, Line
from evals.results.store import SampleStore
from evals.running.methods import compressed_tokens, refuse_beyond_window
from evals.running.reference_answer import reference_tokens

TAIL = 200
"""Characters of a prompt's end that its lines hold."""

CHECKED = 100_000
"""Tokens of finished prompts of a task that are built again when it is resumed, to see whether they are the same."""


@dataclass(eq=False)
class SettingRun:
    """One job on one task: its setting, and the folder that its samples go to; `error` is what ended it early."""

    job: Job
    task: Task
    setting: Setting
    store: SampleStore
    resumed: int = field(default=0, init=False)
    error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.resumed = len(self.ids) - len(self.missing)

    @cached_property
    def ids(self) -> dict[str, None]:
        """The samples of the task, in its order."""
        return dict.fromkeys(self.task.sample_ids)

    @property
    def key(self) -> str:
        """The setting within the task: <protocol>/<method>/<budget>-<hash8>."""
        return "/".join(self.store.folder.parts[-3:])

    @property
    def missing(self) -> list[str]:
        """Ids of the samples that have no result yet."""
        return [id for id in self.ids if id not in self.store.lines]

    @property
    def failures(self) -> dict[str, Line]:
        """The lines of the samples that were tried and have no result."""
        return {id: self.store.failures[id] for id in self.missing if id in self.store.failures}


Batch = tuple[Sample, list[SettingRun]]


def batches(id: str, runs: Sequence[SettingRun]) -> Iterator[Batch]:
    """The sample `id` under each distinct token sequence, with the runs that still need it.

    The full cache joins settings whose eviction continues while decoding. A batch's composition can change a token in
    bfloat16, so where one was cut short, all of it is decoded again.
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
            if job.budget is None:  # which evicts nothing while others decode
                key = next((one for one in by_tokens if one == (alike, one[1]) and one[1].once == job.eviction), key)
            by_tokens.setdefault(key, (sample, []))[1].append(run)
    for sample, sharing in by_tokens.values():
        keys = {run.key for run in sharing}
        missing = {run.key for run in sharing if id not in run.store.lines}
        cut_short: list[set[str]] = []
        for run in sharing:
            before = set(run.store.lines.get(id, {}).get("batch", ()))
            if before & missing and before <= keys:
                cut_short.append(before)
                missing -= before
        for wanted in filter(None, (*cut_short, missing)):
            yield sample, [run for run in sharing if run.key in wanted]


def check_prompts(runs: Sequence[SettingRun]) -> None:
    """Build prompts that are finished, and note the `error` of a run that has a line of another prompt.

    All of them, or of long ones as many as have `CHECKED` tokens, evenly spread: those that run are looked at anyway.
    """
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        finished = [id for id in task.sample_ids if any(id in run.store.lines for run in of_task)]
        for id in some(finished, task):
            sample = task.sample(id)
            for run in of_task:
                _has_another_prompt(run, sample)


def some(ids: Sequence[str], task: Task) -> Sequence[str]:
    """Evenly spread ones of a task's samples, which together have about `CHECKED` tokens at most; two at least."""
    count = max(2, CHECKED // max(1, task.longest_prompt))
    return ids[:: -(-len(ids) // count)] if ids else ids


def _has_another_prompt(run: SettingRun, sample: Sample) -> bool:
    """Whether a run has a line of this sample that was made with another prompt; then that is its `error`."""
    try:
        refuse_another_prompt(run.store, sample)
    except UserError as error:
        run.error = error
        return True
    return False


def refuse_another_prompt(store: SampleStore, sample: Sample) -> None:
    """Raise `UserError` if the `store` has a line of this sample that was made with another prompt."""
    known = store.lines.get(sample.id, {}).get("prompt_sha256")
    if known is not None and known != _digest(sample):
        raise UserError(
            "paths.results",
            "set it to another folder, or delete this one to run all of its samples again",
            value=store.path,
            why=f"sample {sample.id} was made with another prompt than it has now, though its folder is the same",
        )


def _digest(sample: Sample) -> str:
    """16 digits of the hash of a prompt's tokens."""
    return hashlib.sha256(sample.ids.cpu().numpy().tobytes()).hexdigest()[:16]


def run_batch(
    model: LoadedModel,
    sample: Sample,
    batch: Sequence[SettingRun],
    prefixes: PrefixStore | None = None,
    contexts: ContextStore | None = None,
) -> None:
    """Generate with all settings of `batch`, and append their lines.

    Where the prompt has no answer, its line says why, and the run goes on; any other failure is the run's `error`.
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
            job.prefill_chunk,
            job.memory_bytes,
            reference_tokens(model, sample) if job.fidelity else None,
            prefixes,
            compressed if context_only else None,
            contexts if context_only else None,
            job.eviction,
            None if job.fidelity == "answer" else job.fidelity,
        )
    except Exception as error:
        _release_memory(error)
        failure = error
    if contexts and failure:
        contexts.close()
    if prefixes and prefixes.nbytes and failure and (ran_out(failure) or ran_out(failure.__cause__)):
        prefixes.close()  # where memory is short after all, no prompt fails for what another one left
        run_batch(model, sample, batch)
        return
    if isinstance(failure, PrefillError) or (failure and len(batch) == 1):
        for run in batch:
            _fail(run, sample, failure)
        return
    if failure:  # one of them fails: alone, the others do not
        for run in batch:
            run_batch(model, sample, [run], prefixes, contexts)
        return
    seconds = time.perf_counter() - started
    for run, generation in zip(batch, generations, strict=True):
        if sample.id in run.store.lines:
            continue
        keys = [batch[place].key for place in generation.together]
        timing = {"batch_seconds": round(seconds, 3), "shared_by": len(batch)}
        try:
            line = sample_line(model, sample, generation, run.job.protocol, compressed)
            run.store.append(line | {"batch": keys, "timing": timing})
        except NonFiniteError as error:
            _fail(run, sample, error)


def _fail(run: SettingRun, sample: Sample, failure: Exception) -> None:
    """Note why a run has no result of `sample`: in a line, unless no other prompt would fare better."""
    if no_answer(failure):
        if sample.id not in run.store.lines:
            run.store.append(failed_line(sample, failure))
    else:
        run.error = failure


def no_answer(failure: Exception) -> bool:
    """Whether `failure` is one prompt's, so that others may fare better."""
    return isinstance(failure, PromptError) or ran_out(failure)


def failed_line(sample: Sample, failure: Exception) -> Line:
    """The line of a sample that was tried and has no result."""
    sentence = str(failure) if isinstance(failure, PromptError) else f"out of memory ({type(failure).__name__})"
    return {"id": sample.id, "error": sentence, **sample.record}


def sample_line(
    model: LoadedModel, sample: Sample, generation: Generation, protocol: EvaluationProtocol, compressed: int
) -> Line:
    """What one setting generated for one sample, and what it kept of the first `compressed` tokens of its prompt."""
    prediction = text_of(generation.tokens, model.tokenizer, protocol.decode_cleanup)
    scores = sample.score(prediction).items()
    line = {
        "id": sample.id,
        "prediction": prediction,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in scores},
        **sample.record,
        "prompt_tail": model.tokenizer.decode(sample.ids[-TAIL:])[-TAIL:],
        "prompt_sha256": _digest(sample),
        "new_tokens": len(generation.tokens),
        "realised_budget": generation.realised_budget,
        "cache_bytes": generation.cache_bytes,
    }
    if sliding := generation.sliding_bytes:
        line["total_cache_bytes"] = generation.cache_bytes + sliding
    # Of each layer one number, or one per KV head where they differ.
    line["kept"] = [heads[0] if len(set(heads)) == 1 else heads for heads in generation.kept]
    line["compressed"] = generation.realised_budget < compressed or generation.evicted_later
    if compressed < sample.ids.numel():
        line["context_tokens"] = compressed
    if generation.peak_kept is not None:
        line["peak_kept"] = round(generation.peak_kept, 3)
    if measured := generation.fidelity:
        for name in FIDELITY:
            value = getattr(measured, name)
            line[name] = None if value is None else round(value, 6)
        line["kl_per_token"] = [round(value, 4) for value in measured.kl_per_token]
    return line


def _release_memory(error: BaseException | None) -> None:
    """Free what the frames of an error hold: a whole prompt's cache, among others."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
