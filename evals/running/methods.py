"""From a job to its eviction method: what a method has to know of the model, the run and the task."""

from collections.abc import Callable

from compresskv import calibration
from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod
from compresskv.methods import build
from compresskv.models import LoadedModel
from evals.job import Job


def build_method(model: LoadedModel, job: Job, first_prompt: Callable[[], int] | None = None) -> EvictionMethod | None:
    """The job's method, None if it keeps everything: its one way from configuration and calibration.

    `first_prompt` gives the length, in tokens, of the task's first prompt; without a task, a prompt is its own first.
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
    return build(job.method, context_of(model, job, first_prompt))


def context_of(model: LoadedModel, job: Job, first_prompt: Callable[[], int] | None = None) -> Context:
    """What a job's method is told of the model and the run; `first_prompt` as in `build_method`."""
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
        first_prompt=first_prompt() if first_prompt and job.protocol.pyramid_schedule == "first_prompt" else None,
    )
