"""The default model and settings of the benchmarks, composed as `run.py` composes them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import run  # noqa: F401  (registers the resolvers that the configuration uses)
from compresskv.engine.prefill import Setting
from compresskv.models import LoadedModel, load
from evals.job import Job, job_from
from evals.runner import build_method

METHODS = ["full", "streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "compresskv"]
BUDGETS = [64, 128, 256, 512, 1024]
"""With METHODS, the 31 settings of the paper's LongBench table."""

CONF = str(Path(__file__).resolve().parents[1] / "conf")


def job(*overrides: str) -> Job:
    with initialize_config_dir(CONF, version_base="1.3"):
        return job_from(OmegaConf.to_container(compose("config", list(overrides)), resolve=True))


def default_model() -> LoadedModel:
    return load(job().model)


def settings(model: LoadedModel, methods: list[str], budgets: list[int]) -> list[Setting]:
    """Every method at every budget, `full` once."""
    found = []
    for method in methods:
        for budget in budgets if method != "full" else budgets[:1]:
            made = job(f"method={method}", f"budget={budget}")
            found.append(Setting(build_method(model, made), made.budget))
    return found
