"""Build the eviction method of a job from the model, the run and the task."""

from compresskv import calibration
from compresskv.context import Context
from compresskv.errors import PromptError, UserError
from compresskv.eviction import EvictionMethod
from compresskv.methods import build
from compresskv.models import LoadedModel
from evals.job import Job, Sample, Task, refuse_too_long


def build_method(model: LoadedModel, job: Job, task: Task | None = None) -> EvictionMethod | None:
    """Build the job's method, or return None if it keeps everything.

    Without a `task`, each prompt is treated as the first one of its task.
    """
    if job.method.keeps_everything:
        return None
    if model.layers == 0:
        raise UserError(
            "method",
            "use method=full",
            why=f"all layers of {model.name} have sliding windows, so no layer can evict",
        )
    return build(job.method, context_of(model, job, task))


def context_of(model: LoadedModel, job: Job, task: Task | None = None) -> Context:
    """Return the information about model and run from which a job's method is built; `task` as in `build_method`."""
    first = task and job.protocol.pyramid_schedule == "first_prompt"
    return Context(
        model=model.name,
        layers=model.layers,
        q_heads=model.q_heads,
        kv_heads=model.kv_heads,
        observation=job.observation,
        protocol=job.protocol,
        calibration=calibration.choose(model.name, job.calibration, job.protocol, model.weights),
        calibration_setting=job.calibration,
        fingerprint=model.fingerprint,
        weights=model.weights,
        check_weights=job.calibration_check == "on",
        first_prompt=compressed_tokens(job, task.sample(task.sample_ids[0])) if task and first else None,
    )


def compressed_tokens(job: Job, sample: Sample) -> int:
    """Return the number of tokens of a sample's prompt that the job compresses: all, or the tokens before the
    question."""
    if not job.eviction.before_question:
        return sample.ids.numel()
    if not sample.context:
        raise PromptError(
            "eviction.when",
            "set eviction.when=prompt, or use longer prompts",
            value=job.eviction.when,
            why=f"sample {sample.id} does not say where its question begins, or its question was cut",
        )
    return sample.context


def refuse_beyond_window(model: LoadedModel, job: Job, length: int) -> None:
    """Raise `PromptError` for `fidelity.tokens` that do not fit the window after a prompt of `length` tokens."""
    if isinstance(tokens := job.fidelity, int):
        fix = "choose fewer, or shorter prompts"
        refuse_too_long(model, length, tokens, "fidelity.tokens", fix, PromptError, value=tokens)


LOOKED_AT = 3
"""Number of samples of a task that `refuse_without_question` checks."""


def refuse_without_question(job: Job, task: Task) -> None:
    """Raise `UserError` if eviction happens before the question and the first samples of a task have no question."""
    if job.eviction.before_question and not any(task.sample(id).context for id in task.sample_ids[:LOOKED_AT]):
        raise UserError(
            "eviction.when",
            "set eviction.when=prompt",
            value=job.eviction.when,
            why=f"the samples of eval={job.eval.name} {task.name} do not say where their question begins",
        )
