"""What part of HeadKV and AdaKV "+CompressKV" is the selector: un-mixing groups of query heads, or semantic heads.

The released baselines select tokens with mixed-up (strided) groups, their variants with correctly grouped semantic
heads; allocation is mixed up in both. So the released gain is the sum of un-mixing and of semantic heads. Every line
here keeps the allocation fixed and changes only which scores select.
"""

from collections.abc import Callable, Mapping, Sequence

from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.audit.effects import Finished, change, key, prompts
from evals.job import Job
from evals.running.methods import build_method

BUDGET = 128

Arm = tuple[str, str]
"""Whose scores select a KV head's tokens, and how query heads are grouped where tokens are allotted to KV heads."""

_HEADKV = "method.allocator.grouping"
_ADAKV = "method.scorer.contest_grouping"
_UNIFORM = "method.allocator.layers=uniform"

ARMS: dict[str, dict[Arm, tuple[str, ...]]] = {
    "headkv": {
        ("strided", "strided"): ("method=headkv", "method.scorer.grouping=strided", f"{_HEADKV}=strided"),
        ("contiguous", "strided"): ("method=headkv", "method.scorer.grouping=contiguous", f"{_HEADKV}=strided"),
        ("semantic", "strided"): ("method=headcompresskv", f"{_HEADKV}=strided"),
        ("contiguous", "contiguous"): ("method=headkv", "method.scorer.grouping=contiguous", f"{_HEADKV}=contiguous"),
        ("semantic", "contiguous"): ("method=headcompresskv", f"{_HEADKV}=contiguous"),
    },
    "adakv": {
        ("strided", "strided"): ("method=adakv", "method.scorer.grouping=strided", f"{_ADAKV}=strided"),
        ("contiguous", "strided"): ("method=adakv", "method.scorer.grouping=contiguous", f"{_ADAKV}=strided"),
        ("semantic", "strided"): ("method=adacompresskv", f"{_ADAKV}=strided", _UNIFORM),
        ("contiguous", "contiguous"): ("method=adakv", "method.scorer.grouping=contiguous", f"{_ADAKV}=contiguous"),
        ("semantic", "contiguous"): ("method=adacompresskv", f"{_ADAKV}=contiguous", _UNIFORM),
        ("semantic", "layer_error"): ("method=adacompresskv", f"{_ADAKV}=contiguous"),
    },
}
"""Overrides under `corrected`. AdaCompressKV has uniform layers, as AdaKV; only its last arm adds layer budgets."""

LINES: tuple[tuple[str, Arm, Arm], ...] = (
    ("released gain R", ("strided", "strided"), ("semantic", "strided")),
    ("of it un-mixing the groups, U", ("strided", "strided"), ("contiguous", "strided")),
    ("of it semantic heads, R − U", ("contiguous", "strided"), ("semantic", "strided")),
    ("fair gain C", ("contiguous", "contiguous"), ("semantic", "contiguous")),
    ("layer budgets on top", ("semantic", "contiguous"), ("semantic", "layer_error")),
)
"""What is reported: from which arm to which."""


def arms(make: Callable[..., Job]) -> dict[str, dict[Arm, Job]]:
    """The jobs to run, by baseline and arm; `make` composes a job from overrides."""
    jobs: dict[str, dict[Arm, Job]] = {}
    for baseline, by_arm in ARMS.items():
        jobs[baseline] = {
            arm: make(*overrides, f"budget={BUDGET}", f"method.name={baseline}-{'-'.join(arm)}")
            for arm, overrides in by_arm.items()
        }
    return jobs


def refusal(model: LoadedModel, jobs: Sequence[Job]) -> str | None:
    """Why one of the jobs cannot run on this model, such as a missing calibration; None if all can."""
    try:
        for job in jobs:
            build_method(model, job)
    except UserError as error:
        return error.why
    return None


def tell(baseline: str, jobs: Mapping[Arm, Job], finished: Finished) -> str:
    """R, U, R − U, C and the layer budgets of one baseline: paired differences of scores with 95 % intervals."""
    parts = []
    for name, before, after in LINES:
        if before in jobs and after in jobs:
            one, other = finished[key(jobs[before])], finished[key(jobs[after])]
            if prompts(one) != prompts(other):
                raise UserError(
                    "paths.results",
                    "run the arms in another folder",
                    why=f"{baseline}, {name}: the arms saw different prompts",
                )
            parts.append(f"{name} {change(one, other)}")
    return f"{baseline} {BUDGET}: {'; '.join(parts)}"
