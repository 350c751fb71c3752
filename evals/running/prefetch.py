"""`+prefetch=true`: download the models and the data of a run or a sweep, and run nothing."""

from collections.abc import Sequence

from compresskv import models
from evals.console import screen
from evals.job import Job


def prefetch(jobs: Sequence[Job]) -> None:
    """Download the models of `jobs`, and print the folder of each. Checking the jobs has downloaded their data."""
    console = screen()
    for config in dict.fromkeys(job.model for job in jobs):
        console.print(f"{config.name}: {models.fetch(config)}", soft_wrap=True, markup=False)
    names = ", ".join(dict.fromkeys(job.eval.name for job in jobs))
    console.print(f"data of {names}: complete. Set HF_HUB_OFFLINE=1 for the run.", soft_wrap=True, markup=False)
