"""Compare each quirk with `corrected` on the same prompts, and describe the effects for the page."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from compresskv.budget import Budget
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Job, Task
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask
from evals.progress import Progress
from evals.results.schema import Line
from evals.results.summary import seconds
from evals.running.described import describe
from evals.running.methods import build_method
from evals.running.outcome import record_of
from evals.running.tasks import run_task
from evals.tables import compare, text
from evals.tables.statistics import mean_difference

COMPARED: dict[str, tuple[str, ...]] = {
    "gqa_grouping": ("snapkv", "pyramidkv", "headkv", "adakv", "headcompresskv", "adacompresskv"),
    "streaming_tail": ("streaming_llm",),
    "pyramid_schedule": ("pyramidkv",),
    "pyramid_short_prompt": ("pyramidkv",),
    "exact_budget": ("pyramidkv", "cake", "headkv", "adakv", "compresskv", "adacompresskv"),
    "head_pooling": ("headkv", "adakv"),
    "score_dtype": ("snapkv", "pyramidkv", "cake", "headkv", "adakv", "compresskv"),
    "srh_multiplicity": ("compresskv",),
    "calibration_data": ("compresskv", "headkv"),
    "niah_prompt": ("full", "snapkv"),
    "niah_special_tokens": ("full", "snapkv"),
    "niah_sentence_rule": ("full", "snapkv"),
}
"""Methods that each protocol field changes."""

BUDGET = 128

BUDGETS = {"pyramid_schedule": 768, "pyramid_short_prompt": 768}
"""Budgets (tokens) of fields that are not compared at `BUDGET`, where PyramidKV's schedule is the same for every prompt
of 242 tokens or more."""

ELSEWHERE = {
    "masking_sentence_rule": "none in this score: only head masking (`eval=head_masking`) reads this field",
    "chat_wrapper": "none in this score: only LongBench prompts have this chat format",
    "longbench_truncation": "none in this score: only LongBench prompts are cut",
    "decode_cleanup": "none on this tokenizer: it does not request the clean-up",
    "generation_config": "none on this model: its generation_config.json does not change greedy decoding",
}
"""Effects of fields that neither NIAH prompts nor methods read."""

IN_NEITHER = {"head_pooling": "official"}
"""Values from the methods' own repositories, for fields that have the same value in both protocols."""

UNCHANGED = {
    "niah_special_tokens": "none on this tokenizer: it adds no BOS when it encodes, so no BOS can leak",
    "niah_sentence_rule": "none on this tokenizer: its period has one id, and all sentences here end with it",
    "srh_multiplicity": "none on this calibration: both counts rank the same heads first",
}
"""Reasons why a field changes neither the prompts nor the method."""

MARKED = re.compile(r"(<!-- effect:(\w+) -->).*?(<!-- /effect -->)", re.DOTALL)

MakeJob = Callable[[str, int, str | None], Job]
"""(method, budget, field) -> a job under `corrected`, with the field, if any, as released or as in `IN_NEITHER`."""


Finished = Mapping[tuple[str, str, Budget | None], Sequence[Line]]
"""Samples of finished jobs by `key`."""


Compared = tuple[Job, Job, str]
"""A job under `corrected`, its copy with one released field, and the effect of the field if no run is needed, else
""."""


def measure(
    model: LoadedModel, jobs: MakeJob, progress: Progress, others: Sequence[Job] = ()
) -> tuple[dict[str, str], Finished]:
    """Run the missing samples of the compared jobs and of `others` (further jobs under `corrected`).

    Returns the text of every effect by field, with an entry `conditions`, and all samples.
    """
    tasks: dict[EvaluationProtocol, Task] = {}
    compared: dict[str, list[Compared]] = {}
    for field, methods in COMPARED.items():
        for method in methods:
            corrected, released = (jobs(method, BUDGETS.get(field, BUDGET), changed) for changed in (None, field))
            for job in (corrected, released):
                if job.protocol not in tasks:
                    assert isinstance(job.eval, Niah)
                    tasks[job.protocol] = NiahTask(job.eval, model, job.protocol)
            effect = _without_run(model, field, corrected, released, tasks)
            compared.setdefault(field, []).append((corrected, released, effect))
    of_fields = [job for each in compared.values() for *both, effect in each if not effect for job in both]
    unique = {key(job): job for job in (*others, *of_fields)}
    records = [record_of(entry) for entry in run_task(model, list(unique.values()), tasks, progress, _fail)]
    finished = {(record.protocol, record.method, record.budget): record.covered for record in records}
    effects = ELSEWHERE | {field: tell(each, finished) for field, each in compared.items()}
    return effects | {"conditions": _conditions(model, next(iter(tasks.values())), finished)}, finished


def _without_run(
    model: LoadedModel, field: str, corrected: Job, released: Job, tasks: Mapping[EvaluationProtocol, Task]
) -> str:
    """Return the effect of a field if the method refuses the model, or if prompts and method are equal; else ""."""
    before, after = tasks[corrected.protocol], tasks[released.protocol]
    try:
        methods = [describe(build_method(model, job, tasks[job.protocol])) for job in (corrected, released)]
    except UserError as error:
        return f"not yet measured: {error.why}"
    same_prompts = before.identity == after.identity or all(
        before.sample(id).ids.equal(after.sample(id).ids) for id in before.sample_ids
    )
    if methods[0] == methods[1] and same_prompts:
        return UNCHANGED.get(field, "none: it does not change the method")
    return ""


def _fail(jobs: Sequence[Job], error: Exception, task: str) -> None:
    raise error


def key(job: Job) -> tuple[str, str, Budget | None]:
    """Return protocol, method and budget, which identify the audit's jobs."""
    return job.protocol.name, job.method.name, job.budget


def tell(compared: Sequence[Compared], finished: Finished) -> str:
    """Return the effect cell of one field: a part for each method, or one sentence if all are equal."""
    effects = [effect or paired(finished[key(one)], finished[key(other)]) for one, other, effect in compared]
    if len(set(effects)) == 1 and compared[0][2]:
        return effects[0]
    return "<br>".join(f"{one.setting}: {effect}" for (one, *_), effect in zip(compared, effects, strict=True))


def paired(corrected: Sequence[Line], released: Sequence[Line]) -> str:
    """Describe both means, their paired difference with its 95 % bootstrap interval, and how many answers differ."""
    by_id = {line["id"]: line for line in released}
    pairs = [(line, by_id[line["id"]]) for line in corrected]
    prompts = sum(a["prompt_sha256"] != b["prompt_sha256"] for a, b in pairs)
    answers = sum(a["prediction"] != b["prediction"] for a, b in pairs)
    before, after = (fmean(line["score"] for line in lines) for lines in (corrected, released))
    also = f"{prompts} prompts and " if prompts else ""
    return f"{before:.1f} → {after:.1f}, {change(corrected, released)}; {also}{answers} of {len(pairs)} answers differ"


def prompts(lines: Sequence[Line]) -> set[tuple[str, str]]:
    """Return the ids of these samples, each with the hash of its prompt."""
    return {(line["id"], line["prompt_sha256"]) for line in lines}


def change(before: Sequence[Line], after: Sequence[Line]) -> str:
    """Return the mean difference of the scores of equal ids, with its 95 % bootstrap interval.

    Only here are samples with different prompts paired: the change of a prompt is part of a field's effect.
    """
    one, other = ({"": {(line["id"], ""): line["score"] for line in lines}} for lines in (before, after))
    found = mean_difference(compare.differences(one, other))
    interval = found.interval or (found.mean, found.mean)
    values = (text.signed(value, 1) if round(value, 1) else "0.0" for value in (found.mean, *interval))
    mean, low, high = map(text.minus, values)
    return f"**{mean}** [{low}, {high}]"


def _conditions(model: LoadedModel, task: Task, finished: Finished) -> str:
    spent = sum(seconds(line) for lines in finished.values() for line in lines)
    lengths = sorted({line["length"] for lines in finished.values() for line in lines})
    return (
        f"Model {model.name} ({model.dtype}, {model.backend}); {len(task.sample_ids)} cells: prompts of "
        f"{', '.join(map(str, lengths))} tokens, {len(task.sample_ids) // len(lengths)} depths. Prefills and decoding "
        f"of {len(finished)} settings took {spent / 60:.0f} minutes."
    )


def fill(page: str, effects: Mapping[str, str]) -> str:
    """Replace each marked effect of `page`. Raises `UserError` if its markers do not match the effects."""
    marked = [name for _, name, _ in MARKED.findall(page)]
    if wrong := set(marked) ^ set(effects):
        raise UserError(sorted(wrong)[0], "mark each effect once", why="the page and the effects disagree about it")
    return MARKED.sub(lambda found: f"{found[1]}{effects[found[2]]}{found[3]}", page)
