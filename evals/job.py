"""One setting to run, as plain frozen data: what `run.py` makes of a composed configuration."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskv.checking import checked, checked_value, frozen
from compresskv.errors import UserError
from compresskv.methods import MethodConfig, check_parameters, method_config
from compresskv.models import ModelConfig
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from evals.calibrate import CalibrateConfig
from evals.efficiency import EfficiencyConfig
from evals.longbench.task import LongBenchConfig
from evals.niah.task import NiahConfig

EVALS = {
    "niah": NiahConfig,
    "longbench": LongBenchConfig,
    "efficiency": EfficiencyConfig,
    "calibrate": CalibrateConfig,
}


@dataclass(frozen=True)
class Job:
    """A model, a method at a budget (tokens; None for the full cache), an evaluation and a protocol.

    `memory`: GB that a prompt and its decode batch may take beside the model; None: what is free.
    """

    model: ModelConfig
    method: MethodConfig
    budget: int | None
    eval: Any
    protocol: EvaluationProtocol
    observation: ObservationConfig
    calibration: str
    prefill_chunk: int | None
    memory: float | None
    results: Path
    logger: Mapping[str, Any]
    config: Mapping[str, Any] = dataclasses.field(hash=False, repr=False, default_factory=dict)

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else int(self.memory * 1e9)

    @property
    def setting(self) -> str:
        """How a table names this job: method and budget."""
        return self.method.name if self.budget is None else f"{self.method.name} {self.budget}"


def job_from(config: Mapping[str, Any]) -> Job:
    """Check a resolved configuration and turn it into a `Job`. Raises `UserError` naming the field, value and fix."""
    method = method_config(config["method"])
    check_parameters(method)
    evaluation = config["eval"]
    model = {key: value for key, value in config["model"].items() if key != "niah"}  # defaults for conf/eval/niah
    if evaluation["name"] not in EVALS:
        raise UserError(f"eval.name={evaluation['name']}: choose one of {', '.join(EVALS)}")
    budget = checked_value("budget", int, config["budget"])
    if budget < 1:
        raise UserError(f"budget={budget}: choose a number of tokens above the observation window")
    chunk = checked_value("prefill_chunk", int | None, config["prefill_chunk"])
    if chunk is not None and chunk < 1:
        raise UserError(f"prefill_chunk={chunk}: choose 1 or more tokens, or null")
    memory = checked_value("memory", float | None, config["memory"])
    if memory is not None and not 0 < memory < math.inf:
        raise UserError(f"memory={memory}: choose a number of GB above 0, or null for what is free")
    return Job(
        model=checked("model", ModelConfig, model),
        method=method,
        budget=None if method.keeps_everything else budget,
        eval=checked("eval", EVALS[evaluation["name"]], evaluation),
        protocol=checked("protocol", EvaluationProtocol, config["protocol"]),
        observation=checked("observation", ObservationConfig, config["observation"]),
        calibration=config["calibration"],
        prefill_chunk=chunk,
        memory=memory,
        results=Path(config["paths"]["results"]).expanduser(),
        logger=frozen(config["logger"]),
        config=config,
    )
