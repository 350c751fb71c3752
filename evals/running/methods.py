"""From a job to its eviction method: what a method has to know of the model, the run and the task."""

from compresskv import calibration
from compresskv.context import Context
from compresskv.errors import PromptError, UserError
from compresskv.eviction import EvictionMethod
from compresskv.methods import build
from compresskv.models import LoadedModel
from evals.job import Job, Sample, Task


def build_method(model: LoadedModel, job: Job, task: Task | None = None) -> EvictionMethod | None:
    """The job's method, None if it keeps everything: its one way from configuration and calibration.

    Without a `task`, each prompt is the first one of its task.
    Raises `UserError` for what the method needs and the model lacks.
    """
    if job.method.keeps_everything:
        return None
    if model.layers == 0:
        raise UserError(
            "method",
            "use method=full",
            why=f"{model.name} has sliding-window layers only, so there is nothing to evict",
        )
    return build(job.method, context_of(model, job, task))


def context_of(model: LoadedModel, job: Job, task: Task | None = None) -> Context:
    """What a job's method is told of the model and the run; `task` as in `build_method`."""
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
    """How many tokens of a sample's prompt the job compresses: all, or those before the question.

    Raises `PromptError` for a sample that does not say where its question begins.
    """
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
    """Raise `UserError` for `fidelity.tokens` that do not fit the model's window after a prompt of `length` tokens."""
    tokens = job.fidelity
    if isinstance(tokens, int) and length + tokens > model.window:
        raise UserError(
            "fidelity.tokens",
            "choose fewer, or shorter prompts",
            value=tokens,
            why=f"after a prompt of {length} tokens they exceed the {model.window}-token window of {model.name}",
        )


LOOKED_AT = 3
"""Samples of a task that are looked at before it runs."""


def refuse_without_question(job: Job, task: Task) -> None:
    """Raise `UserError` for eviction before the question, if the first samples of a task have no question."""
    if job.eviction.before_question and not any(task.sample(id).context for id in task.sample_ids[:LOOKED_AT]):
        raise UserError(
            "eviction.when",
            "set eviction.when=prompt",
            value=job.eviction.when,
            why=f"the samples of eval={job.eval.name} {task.name} do not say where their question begins",
        )
