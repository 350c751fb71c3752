"""Split the gain of HeadKV and AdaKV "+CompressKV" into the parts due to grouping and to semantic heads.

The released baselines select tokens with wrong (strided) groups of query heads. Their variants use semantic heads with
correct groups. Allocation uses strided groups in both. The released gain therefore has two parts: correct groups and
semantic heads. Every comparison here keeps the allocation fixed and changes only the scores that select.
"""

from collections.abc import Callable, Mapping, Sequence

from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.audit.effects import BUDGET, Finished, change, key, prompts
from evals.job import Job
from evals.running.methods import build_method

Arm = tuple[str, str]
"""The scores that select a KV head's tokens, and the grouping of query heads for the allocation to KV heads."""

SELECTORS = {"the paper's share of heads": "semantic", "3 heads": "semantic-3", "all heads": "semantic-all"}
"""Sets of semantic heads that are compared, by their names on the page."""

_HEADS = {"semantic": "null", "semantic-3": "3", "semantic-all": "all"}
_GROUPING = {"headkv": "method.allocator.grouping", "adakv": "method.scorer.contest_grouping"}
"""Setting that groups query heads for the allocation to KV heads, by baseline."""


def _overrides(baseline: str) -> dict[Arm, tuple[str, ...]]:
    """Return the overrides of each arm under `corrected`.

    AdaCompressKV has uniform layers, as AdaKV does; only its last arm adds layer budgets.
    """
    grouping = _GROUPING[baseline]
    by_arm: dict[Arm, tuple[str, ...]] = {}
    for arm in (("strided", "strided"), ("contiguous", "strided"), ("contiguous", "contiguous")):
        by_arm[arm] = (f"method={baseline}", f"method.scorer.grouping={arm[0]}", f"{grouping}={arm[1]}")
    ada = baseline == "adakv"
    for selector, number in _HEADS.items():
        method = (f"method={'adacompresskv' if ada else 'headcompresskv'}", f"method.scorer.heads={number}")
        uniform = ("method.allocator.layers=uniform",) if ada else ()
        for allotted in ("strided", "contiguous"):
            by_arm[selector, allotted] = (*method, f"{grouping}={allotted}", *uniform)
        if ada:
            by_arm[selector, "layer_error"] = (*method, f"{grouping}=contiguous")
    return by_arm


def lines(selector: str) -> dict[str, tuple[Arm, Arm]]:
    """Return the comparisons for one set of semantic heads by name, each as (arm before, arm after)."""
    return {
        "R": (("strided", "strided"), (selector, "strided")),
        "R − U": (("contiguous", "strided"), (selector, "strided")),
        "C": (("contiguous", "contiguous"), (selector, "contiguous")),
        "layer budgets on top": ((selector, "contiguous"), (selector, "layer_error")),
    }


GROUPS: tuple[Arm, Arm] = (("strided", "strided"), ("contiguous", "strided"))
"""U: the effect of correct groups without semantic heads."""


def arms(make: Callable[..., Job]) -> dict[str, dict[Arm, Job]]:
    """Return the jobs to run, by baseline and arm. `make` composes a job from overrides."""
    jobs: dict[str, dict[Arm, Job]] = {}
    for baseline in _GROUPING:
        jobs[baseline] = {
            arm: make(*overrides, f"budget={BUDGET}", f"method.name={baseline}-{'-'.join(arm)}")
            for arm, overrides in _overrides(baseline).items()
        }
    return jobs


def refusal(model: LoadedModel, jobs: Sequence[Job]) -> str | None:
    """Return why one of the jobs cannot run on this model, such as a missing calibration; None if all can run."""
    try:
        for job in jobs:
            build_method(model, job)
    except UserError as error:
        return error.why
    return None


def tell(baseline: str, jobs: Mapping[Arm, Job], finished: Finished) -> str:
    """Describe U of one baseline, and R, R − U, C and the layer budgets with each set of semantic heads.

    All are paired differences of scores with 95 % intervals. Raises `UserError` if the arms have different prompts.
    """

    def told(name: str, before: Arm, after: Arm) -> str:
        one, other = finished[key(jobs[before])], finished[key(jobs[after])]
        if prompts(one) != prompts(other):
            why = f"{baseline}, {name}: the arms saw different prompts"
            raise UserError("paths.results", "run the arms in another folder", why=why)
        return f"{name} {change(one, other)}"

    parts = [f"{baseline} {BUDGET}: {told('U', *GROUPS)}"]
    for title, selector in SELECTORS.items():
        of_selector = [told(name, *arms) for name, arms in lines(selector).items() if jobs.keys() >= set(arms)]
        parts.append(f"{title}: {', '.join(of_selector)}")
    return "<br>".join(parts)
