"""`python -m evals audit`: measure every quirk and fill in the effect column of docs/audit.md.

Arguments are overrides as for `run.py`. Finished samples are not computed again.
"""

from functools import cache
from pathlib import Path
from typing import Any

from compresskv import models
from compresskv.errors import UserError
from evals import compose
from evals.audit import selector
from evals.audit.effects import IN_NEITHER, fill, measure
from evals.compose import job_from
from evals.files import write_text
from evals.job import Job
from evals.progress import Progress

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
COMPARED = ("method", "budget", "protocol")
"""Settings that the audit compares; overrides cannot set them."""

GRID = ("eval.lengths=[1000,1500,2000,3000]", "eval.depths=10")


def main(overrides: list[str], page: Path = PAGE) -> None:
    """Measure the effects and rewrite `page`. Raises `UserError` for overrides of the settings that are compared."""
    for override in overrides:
        name = override.partition("=")[0].lstrip("+~").partition(".")[0].partition("/")[0]
        if name in COMPARED:
            raise UserError(
                name,
                "leave it out",
                value=override.partition("=")[2],
                why="the audit sets this value itself",
            )
    released = compose.composed("protocol=released")["protocol"]

    def make(*changes: str) -> Job:
        return compose.job(*GRID, *overrides, *changes)

    @cache
    def composed(method: str) -> dict[str, Any]:
        return compose.composed(*GRID, *overrides, f"method={method}")

    def make_job(method: str, budget: int, field: str | None) -> Job:
        config = composed(method) | {"budget": budget}
        if field:
            value = IN_NEITHER.get(field, released[field])
            config["protocol"] = config["protocol"] | {field: value, "name": f"corrected-{field}"}
        return job_from(config)

    model = models.load(make_job("full", 128, None).model)
    arms = selector.arms(make)
    refusals = {baseline: selector.refusal(model, list(jobs.values())) for baseline, jobs in arms.items()}
    others = [job for baseline, jobs in arms.items() if not refusals[baseline] for job in jobs.values()]
    effects, finished = measure(model, make_job, Progress(), others)
    effects["selector"] = "<br>".join(
        f"{baseline}: not yet measured: {refusals[baseline]}"
        if refusals[baseline]
        else selector.tell(baseline, jobs, finished)
        for baseline, jobs in arms.items()
    )
    write_text(page, fill(page.read_text(encoding="utf-8"), effects))


if __name__ == "__main__":
    from evals.cli import start

    start("audit")
