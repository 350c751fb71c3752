"""The default model and settings of the benchmarks, composed as in `run.py`."""

from compresskv.engine.setting import Setting
from compresskv.models import LoadedModel, load
from evals.compose import job
from evals.running.methods import build_method

METHODS = ["full", "streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "compresskv"]
BUDGETS = [64, 128, 256, 512, 1024]
"""Budgets in tokens; with METHODS, the 31 settings of the paper's LongBench table."""


def default_model(*overrides: str) -> LoadedModel:
    return load(job(*overrides).model)


def settings(model: LoadedModel, methods: list[str], budgets: list[int]) -> list[Setting]:
    """Return every method at every budget, and `full` once."""
    made = []
    for method in methods:
        for budget in budgets if method != "full" else budgets[:1]:
            one = job(f"method={method}", f"budget={budget}")
            made.append(Setting(build_method(model, one), one.budget))
    return made
