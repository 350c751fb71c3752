"""One setting to run, as plain frozen data: what a composed configuration becomes, checked, without torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import yaml

from compresskv.checking import Ge, Gt, Le, MinLen, PathText, checked, checked_value, frozen, refuse_unknown
from compresskv.errors import UserError, readable
from compresskv.folders import CONF, package_files
from compresskv.inputs import expanded
from compresskv.methods import MethodConfig, check_parameters, least_window, method_config, refuse_mismatch
from compresskv.model_config import ModelConfig
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from evals.evaluation import Evaluation, SampledEvaluation, kind_of, reserved
from evals.loggers import Logger
from evals.tables.methods import Name, named

Tokens = Annotated[int, Ge(1), Le(100_000_000)]

SCALARS: dict[str, Any] = {
    "budget": Tokens,
    "calibration": PathText,
    "prefill_chunk": Tokens | None,
    "memory": Annotated[float, Gt(0), Le(1_000_000)] | None,
    "fidelity": bool,
}
"""The settings at the top of `conf/config.yaml` that are one value, and what they take."""

NODES = ("model", "method", "eval", "protocol", "observation", "logger", "paths")
"""Those that are a mapping."""


@dataclass(frozen=True)
class Paths:
    """`conf/paths/*.yaml`: the folder that everything a run leaves behind goes to."""

    results: PathText


@dataclass(frozen=True)
class Job:
    """A model, a method at a budget (tokens; None for the full cache), an evaluation and a protocol.

    `prefill_chunk` in tokens; `memory`: GB that a prompt and its decode batch may take beside the model; None: what is
    free. `fidelity`: whether to measure how far each setting is from the full cache. `config` is the configuration that
    all of it came from. `apart`: what tells it from the others in a sweep that have the same method and budget.
    """

    model: ModelConfig
    method: MethodConfig
    budget: int | None
    eval: Evaluation
    protocol: EvaluationProtocol
    observation: ObservationConfig
    calibration: str
    prefill_chunk: int | None
    memory: float | None
    fidelity: bool
    results: Path
    logger: Logger | None
    config: Mapping[str, Any] = field(hash=False, repr=False, default_factory=dict)
    apart: str = field(compare=False, default="")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else int(self.memory * 1e9)

    @property
    def setting(self) -> str:
        """Method and budget."""
        return str(Name(named(self.method.name), self.budget))

    @property
    def label(self) -> str:
        """Method and budget, and the protocol if it is not the default."""
        protocol = self.protocol.label
        return str(Name(named(self.method.name), self.budget, protocol, marked=protocol != "corrected"))

    @property
    def name(self) -> str:
        """The label, with what tells it from others in its sweep."""
        return f"{self.label} {self.apart}".rstrip()


def jobs_from(configs: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs of resolved configurations, for a run that is about to start: their data and packages are there.

    What shows without torch is checked first, and all mistakes are told at once: raises `UserError` for one, an
    `ExceptionGroup` of several.
    """
    jobs: list[Job] = []
    mistakes: dict[str, UserError] = {}

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            mistakes.setdefault(str(error), error)

    for config in configs:
        with collected():
            jobs.append(_job(config))
    for job in jobs:
        for check in _FITTING:
            with collected():
                check(job)
    for packages in dict.fromkeys(job.model.packaged for job in jobs):
        with collected():
            package_files(packages)
    for evaluation in dict.fromkeys(job.eval for job in jobs):
        with collected():
            evaluation.check()
    if not mistakes:
        for method in dict.fromkeys(job.method for job in jobs):
            with collected():
                check_parameters(method)
    if len(mistakes) > 1:
        raise ExceptionGroup("several mistakes", list(mistakes.values()))
    for error in mistakes.values():
        raise error
    return jobs


def job_from(config: Mapping[str, Any]) -> Job:
    """Check a resolved configuration and turn it into a `Job`. Raises `UserError` naming the field, value and fix.

    Whether its data and its packages are there is for `jobs_from` to say.
    """
    job = _job(config)
    for check in _FITTING:
        check(job)
    check_parameters(job.method)
    return job


def _job(config: Mapping[str, Any]) -> Job:
    """`job_from`, except for whether its parts fit together, and for what needs the methods, which import torch."""
    refuse_unknown("", config, [*SCALARS, *NODES, "experiment"])
    if missing := [name for name in (*SCALARS, *NODES) if name not in config]:
        raise UserError(missing[0], "give it a value", why="not set")
    scalars = {name: checked_value(name, hint, config[name]) for name, hint in SCALARS.items()}
    method = method_config(config["method"])
    evaluation = plug_in("eval", Evaluation, config["eval"])
    _refuse_name_of_another(evaluation.name, config["eval"]["_target_"])
    model = {name: value for name, value in _mapping("model", config["model"]).items() if name != "evals"}
    results = checked("paths", Paths, config["paths"]).results
    job = Job(
        model=checked("model", ModelConfig, model),
        method=method,
        budget=None if method.keeps_everything else scalars["budget"],
        eval=evaluation,
        protocol=checked("protocol", EvaluationProtocol, config["protocol"]),
        observation=checked("observation", ObservationConfig, config["observation"]),
        calibration=scalars["calibration"],
        prefill_chunk=scalars["prefill_chunk"],
        memory=scalars["memory"],
        fidelity=scalars["fidelity"],
        results=expanded(results, "paths.results"),
        logger=_logger(config["logger"]),
        config=config,
    )
    _refuse_name_of_another_model(job.model)
    _refuse_unwritable("", config)
    if job.fidelity and not isinstance(evaluation, SampledEvaluation):
        raise UserError(
            "fidelity", "set fidelity=false", value=True, why=f"eval={evaluation.name} has no samples to measure it on"
        )
    return job


def _refuse_mismatch(job: Job) -> None:
    """Raise `UserError` for an allocator that the scorer cannot feed."""
    refuse_mismatch(job.method)


def _refuse_small(job: Job) -> None:
    """Raise `UserError` for a budget that leaves no room beside the tokens that the method keeps anyway."""
    window = least_window(job.method, job.observation.window)
    if job.eval.evicts and job.budget is not None and job.budget <= window:
        why = f"the method keeps the observation window of {window} tokens, which leaves no room"
        raise UserError("budget", f"set budget to {window + 1} or more", value=job.budget, why=why)


_FITTING = (_refuse_mismatch, _refuse_small)
"""What is checked of a job besides its single settings."""


def _refuse_name_of_another_model(model: ModelConfig) -> None:
    """Raise `UserError` for the weights of one model of `conf/model` by the name of another: published numbers stand
    beside results by that name, and calibrations are found by it."""
    if model.name.casefold() not in _weights():
        return
    for name, weights in _weights().items():
        if name != model.name.casefold() and weights == (model.path or model.package):
            raise UserError(
                "model.name", "choose another name", value=model.name, why=f"these are the weights of {name}"
            )


@cache
def _weights() -> dict[str, Any]:
    """Where each model of `conf/model` comes from, by its name: a hub id, or files in a package."""
    nodes = {path.stem: yaml.safe_load(path.read_bytes()) for path in sorted((CONF / "model").glob("[!_]*.yaml"))}
    return {name.casefold(): frozen(node.get("path") or node.get("package")) for name, node in nodes.items()}


def _refuse_name_of_another(name: str, target: str) -> None:
    """Raise `UserError` for an evaluation by the name of a built-in one that it is not: results go by that name."""
    if (known := reserved(name)) and known != kind_of(target):
        raise UserError(
            "eval.name", "choose another name", value=name, why=f"results would read as those of eval={known}"
        )


def take_plan(*configs: dict[str, Any]) -> bool:
    """Take `plan` out of configurations: whether to say what they will take (`evals.running.plan`), and run nothing.

    Raises `UserError` for a value that is neither true nor false.
    """
    given = [config.pop("plan", False) for config in configs]
    return any(checked_value("plan", bool, value) for value in given)


def plug_in(where: str, kind: Any, node: Any) -> Any:
    """The frozen dataclass that `_target_` names, a subclass of `kind`, with the rest of `node` as its fields."""
    values = dict(_mapping(where, node))
    return checked(where, plug_in_class(f"{where}._target_", kind, values.pop("_target_", None)), values)


def plug_in_class(where: str, kind: Any, target: Any) -> Any:
    """The subclass of `kind` that the dotted name `target` stands for."""
    target = checked_value(where, Annotated[str, MinLen(1)], target)
    module, _, name = target.rpartition(".")
    try:
        plugged_in = resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError, ValueError) as error:
        reason = readable(str(error), 200)
        raise UserError(where, "check its YAML", value=target, why=f"cannot be imported ({reason})") from error
    if not (isinstance(plugged_in, type) and issubclass(plugged_in, kind)):
        raise UserError(where, f"name a subclass of {kind.__name__}", value=target)
    return plugged_in


def _logger(node: Any) -> Logger | None:
    if _mapping("logger", node).get("_target_", "") is None:
        refuse_unknown("logger", [name for name in node if name != "_target_"], [])
        return None
    return plug_in("logger", Logger, node)


def _refuse_unwritable(where: str, value: Any) -> None:
    """Raise `UserError` for what the files of a result cannot hold, wherever in a configuration it is."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_unwritable(f"{where}.{name}" if where else str(name), item)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _refuse_unwritable(f"{where}[{place}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(where, "choose a finite number", value=value)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(where, "write it in UTF-8", value=value, why="it has bytes that are not text") from None


def _mapping(where: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(where, "choose a mapping of its settings, as its YAML has it", value=node)
    return node
