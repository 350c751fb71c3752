"""Turn a command line into jobs: compose its configuration with Hydra, expand sweeps, and check the values."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from compresskv.budget import budget_from
from compresskv.checking import Ge, Gt, Le, MinLen, PathText, checked, checked_value, frozen, refuse_unknown
from compresskv.engine_config import EngineConfig
from compresskv.errors import UserError, readable
from compresskv.folders import CONF, package_files
from compresskv.inputs import expanded
from compresskv.methods import (
    check_parameters,
    least_window,
    method_config,
    refuse_chunks,
    refuse_mismatch,
    refuse_shared,
)
from compresskv.model_config import ModelConfig, name_of
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from compresskv.schedule import EvictionSchedule
from evals.cli import quoted
from evals.help import groups_help, settings_help
from evals.hydra_errors import refuse_two_files, refused_in_a_sentence
from evals.job import Evaluation, Export, Fidelity, Job, Logger, SampledEvaluation
from evals.kinds import kind_of, reserved

# `model.path=<id or directory>` also sets the model's name, unless `model.name` is given.
OmegaConf.register_new_resolver("name_of", lambda path, name: name if path is None else name_of(path), replace=True)
OmegaConf.register_new_resolver("if_null", lambda value, otherwise: otherwise if value is None else None, replace=True)
# For `--help`, in conf/config.yaml.
OmegaConf.register_new_resolver("settings_help", lambda *, _root_: settings_help(_root_), replace=True)
OmegaConf.register_new_resolver("groups_help", lambda *, _root_: groups_help(_root_), replace=True)

TYPES: dict[str, Any] = {
    "calibration": PathText,
    "calibration_check": Literal["on", "off"],
    "prefill_chunk": Annotated[int, Ge(1), Le(100_000_000)] | None,
    "memory": Annotated[float, Gt(0), Le(1_000_000)] | None,
    "protocol": EvaluationProtocol,
    "observation": ObservationConfig,
    "eviction": EvictionSchedule,
    "engine": EngineConfig,
    "export": Export,
}
"""Types of the settings at the top of `conf/config.yaml` that are fields of `Job`."""

OTHERS = ("budget", "fidelity", "model", "method", "eval", "logger", "paths")
"""The other settings at the top of `conf/config.yaml`. `_job` reads each setting with separate code."""


@dataclass(frozen=True)
class Paths:
    """Settings of `conf/paths/*.yaml`: the folder for all files that a run writes."""

    results: PathText


def composed(*overrides: str, config_dir: str | Path | None = None) -> dict[str, Any]:
    """Compose the configuration of a command line and return it as plain data. `config_dir`: as `--config-dir`."""
    given = list(overrides)
    if config_dir is not None:
        folder = expanded(config_dir, "--config-dir").absolute()
        if not folder.is_dir():
            raise UserError("--config-dir", "check the path", value=Path(config_dir), why="the folder does not exist")
        given.append(f"hydra.searchpath=[{quoted(f'file://{folder}')}]")
    with _hydra(given):
        return _composed(given)


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    return resolved(without_hydra(compose("config", list(overrides), return_hydra_config=True)))


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a composed configuration with the name of its experiment, if any, instead of the node `hydra`."""
    refuse_two_files(config.hydra)
    with open_dict(config):
        config.update(experiment_of(config.hydra))
        del config["hydra"]
    return config


def experiment_of(hydra: HydraConf) -> dict[str, str]:
    """Return the chosen experiment as a part of the configuration; reports find its results by this name."""
    name = hydra.runtime.choices.get("experiment")
    return {"experiment": name} if name else {}


def job(*overrides: str, config_dir: str | Path | None = None) -> Job:
    """Return the job of a command line, checked as by `job_from`."""
    return job_from(composed(*overrides, config_dir=config_dir))


@cache
def sweep(*overrides: str, only: str | tuple[str, ...] = "") -> list[dict[str, Any]]:
    """Return the resolved configurations of `python run.py -m <overrides>`.

    Of an experiment's own sweep, only settings whose names start with one of `only` are swept over. The result is
    cached: do not modify it.
    """
    with _hydra(overrides):
        params = [f"{name}={value}" for name, value in _swept(overrides).items() if name.startswith(only)]
        return [_composed(each) for each in expansion([*params, *overrides])]


def axes(*overrides: str) -> dict[str, list[str]]:
    """Return the settings that the experiment in `-m <overrides>` sweeps over, with their values."""
    with _hydra(overrides):
        values: dict[str, dict[str, None]] = {}
        for each in expansion([f"{name}={value}" for name, value in _swept(overrides).items()]):
            for name, _, value in (override.partition("=") for override in each):
                values.setdefault(name, {})[value] = None
        return {name: list(distinct) for name, distinct in values.items()}


def expansion(overrides: Sequence[str], parser: OverridesParser | None = None) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations of the values of all settings.

    If a setting is given twice, the last values are used. `for.<method>.<setting>` sets `method.<setting>` for this
    method only; other methods are not combined with its values.
    """
    parsed = (parser or OverridesParser.create()).parse_overrides(list(overrides))
    scoped: dict[str, list[Override]] = {}
    common = []
    for override in parsed:
        first, _, rest = override.key_or_group.partition(".")
        name, _, setting = rest.partition(".")
        if (CONF / "method" / name).is_dir():  # for.kvpress.snapkv.<setting>, since Hydra's keys have no slash
            press, _, setting = setting.partition(".")
            name = f"{name}/{press}"
        if first == "for" and override.is_add():
            raise UserError(override.key_or_group, "leave the + out", why="for.<method> needs none")
        if first == "for" and setting:
            override.key_or_group = f"method.{setting}"
            scoped.setdefault(name, []).append(override)
        else:
            common.append(override)
    (jobs,) = BasicSweeper.split_arguments(common, None)
    methods = [next((o.partition("=")[2] for o in reversed(job) if o.startswith("method=")), "") for job in jobs]
    if unknown := [name for name in scoped if name not in methods]:
        raise UserError(
            f"for.{unknown[0]}", f"add {unknown[0]} to method=", why="the sweep does not contain this method"
        )
    own = {name: BasicSweeper.split_arguments(settings, None)[0] for name, settings in scoped.items()}
    return [[*job, *settings] for method, job in zip(methods, jobs, strict=True) for settings in own.get(method, [[]])]


def _swept(overrides: Sequence[str]) -> dict[str, str]:
    """Return `hydra.sweeper.params` composed with the overrides that are not sweeps themselves."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = [
        str(override.input_line)
        for override in parsed
        if not override.is_sweep_override() and not override.get_key_element().startswith("for.")
    ]
    config = compose("config", fixed, return_hydra_config=True)
    return OmegaConf.to_container(OmegaConf.select(config, "hydra.sweeper.params") or OmegaConf.create(), resolve=True)  # type: ignore[return-value]


@contextmanager
def _hydra(overrides: Sequence[str]) -> Iterator[None]:
    GlobalHydra.instance().clear()
    with refused_in_a_sentence(overrides), initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration, resolved, as plain data, with the short form of `fidelity` if a short form
    exists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    if "fidelity" in container:
        container["fidelity"] = Fidelity.shortened(container["fidelity"])
    return container  # type: ignore[return-value]


INSTEAD = ("plan", "prefetch")
"""Actions that replace running, given like `+plan=true`. Each is the function `<name>` in `evals.running.<name>`."""


def take_action(*configs: dict[str, Any]) -> str:
    """Remove the names in `INSTEAD` from the configurations, and return the name that is true, or `run`."""
    given = {name: [checked_value(name, bool, config.pop(name, False)) for config in configs] for name in INSTEAD}
    chosen = [name for name, values in given.items() if any(values)]
    if len(chosen) > 1:
        raise UserError(chosen[0], f"leave out {chosen[1]}", value=True, why=f"{chosen[1]} is also true")
    return chosen[0] if chosen else "run"


def action(name: str) -> Callable[[Sequence[Job]], None]:
    """Return the function that carries out `run` or an action in `INSTEAD`. Imports torch."""
    module = import_module(f"evals.running.{'sweep' if name == 'run' else name}")
    return getattr(module, name)


def jobs_from(configs: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Return the jobs of resolved configurations that are about to run, and check that data and packages exist.

    Raises `UserError` for one mistake, and an `ExceptionGroup` for several. The checks that import torch come last.
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
    checks: list[Callable[[], Any]] = [partial(check, job) for job in jobs for check in _FITTING]
    checks += [partial(package_files, packages) for packages in dict.fromkeys(job.model.packaged for job in jobs)]
    checks += [evaluation.check for evaluation in dict.fromkeys(job.eval for job in jobs)]
    for passes in checks:
        with collected():
            passes()
    for method in () if mistakes else dict.fromkeys(job.method for job in jobs):
        with collected():
            check_parameters(method)
    if len(mistakes) > 1:
        raise ExceptionGroup("several mistakes", list(mistakes.values()))
    for error in mistakes.values():
        raise error
    return jobs


def job_from(config: Mapping[str, Any]) -> Job:
    """Check a resolved configuration, apart from its data and packages, and turn it into a `Job`."""
    job = _job(config)
    for check in _FITTING:
        check(job)
    check_parameters(job.method)
    return job


def _job(config: Mapping[str, Any]) -> Job:
    """Turn a configuration into a `Job` without the checks in `_FITTING` and the checks that import torch."""
    refuse_unknown("", config, [*OTHERS, *TYPES, "experiment"])
    if missing := [name for name in (*OTHERS, *TYPES) if name not in config]:
        raise UserError(missing[0], "give it a value", why="not set")
    budget = budget_from(config["budget"])
    values = {name: checked_value(name, hint, config[name]) for name, hint in TYPES.items()}
    method = method_config(config["method"])
    evaluation = plug_in("eval", Evaluation, config["eval"])
    if (known := reserved(evaluation.name)) and known != kind_of(config["eval"]["_target_"]):
        why = f"this is the name of eval={known} in results"
        raise UserError("eval.name", "choose another name", value=evaluation.name, why=why)
    model = {name: value for name, value in _mapping("model", config["model"]).items() if name != "evals"}
    if method.keeps_everything:
        values["eviction"] = values["eviction"].once
        config = {**config, "eviction": asdict(values["eviction"])}
    job = Job(
        **values,
        model=checked("model", ModelConfig, model),
        method=method,
        budget=None if method.keeps_everything else budget,
        eval=evaluation,
        fidelity=Fidelity.of(config["fidelity"]).tokens,
        results=expanded(checked("paths", Paths, config["paths"]).results, "paths.results"),
        logger=_logger(config["logger"]),
        config=config,
    )
    _refuse_name_of_another_model(job.model)
    _refuse_unwritable("", config)
    _refuse_unsupported(job)
    return job


def _refuse_unsupported(job: Job) -> None:
    """Raise `UserError` for a setting that the evaluation, the protocol or the time of eviction does not support."""
    evaluation, eviction, kept = f"eval={job.eval.name}", job.eviction, job.export.kept
    sampled, released = isinstance(job.eval, SampledEvaluation), job.protocol.name == "released"
    changes = f"with eviction.when={eviction.when}, the kept tokens change during generation"
    once = "protocol=released reproduces the authors' code, which evicts once, after the whole prompt"
    measured, when = ("fidelity=false", job.config["fidelity"]), ("eviction.when=prompt", eviction.when)
    exported = ("export.kept=false", True)
    for (setting, value), wrong, why in (
        (measured, job.fidelity and not sampled, f"{evaluation} has no samples to measure"),
        (when, eviction.before_question and not job.eval.asks, f"the prompts of {evaluation} have no question"),
        (when, eviction.decodes and not job.eval.decodes, f"{evaluation} cannot evict while it generates"),
        (when, eviction.when != "prompt" and released, once),
        (exported, kept and not sampled, f"{evaluation} has no samples with kept tokens"),
        (exported, kept and eviction.decodes, changes),
    ):
        if wrong:
            raise UserError(setting.partition("=")[0], f"set {setting}", value=value, why=why)


def _refuse_small(job: Job) -> None:
    """Raise `UserError` for a budget that leaves no room in addition to the tokens that the method always keeps."""
    window = least_window(job.method, job.observation.window)
    if job.eval.evicts and isinstance(job.budget, int) and job.budget <= window:
        why = f"the method always keeps the observation window of {window} tokens, so no budget is left for others"
        raise UserError("budget", f"set budget to {window + 1} or more", value=job.budget, why=why)


def _refuse_in_layer(job: Job) -> None:
    """Raise `UserError` for a method of the shared path in an evaluation that measures in-layer eviction."""
    if job.eval.evicts and not isinstance(job.eval, SampledEvaluation):
        refuse_shared(job.method, f"eval={job.eval.name}")


_FITTING: tuple[Callable[[Job], None], ...] = (
    lambda job: refuse_mismatch(job.method),
    _refuse_small,
    lambda job: refuse_chunks(job.method, job.prefill_chunk),
    _refuse_in_layer,
)
"""Checks that the settings of a job fit together."""


def _refuse_name_of_another_model(model: ModelConfig) -> None:
    """Raise `UserError` if a model has the weights of one model in `conf/model` and the name of another model.

    Published numbers and calibrations are looked up by this name.
    """
    own = model.name.casefold()
    for name, weights in _weights().items() if own in _weights() else ():
        if name != own and weights == (model.path or model.package):
            why = f"it has the weights of {name}"
            raise UserError("model.name", "choose another name", value=model.name, why=why)


@cache
def _weights() -> dict[str, Any]:
    """Return the source of each model in `conf/model` by its name: a hub id, or files in a package."""
    nodes = {path.stem: yaml.safe_load(path.read_bytes()) for path in sorted((CONF / "model").glob("[!_]*.yaml"))}
    return {name.casefold(): frozen(node.get("path") or node.get("package")) for name, node in nodes.items()}


def plug_in(where: str, kind: Any, node: Any) -> Any:
    """Create the frozen dataclass that `_target_` names, a subclass of `kind`, with the other values as fields."""
    values, field = dict(_mapping(where, node)), f"{where}._target_"
    target = checked_value(field, Annotated[str, MinLen(1)], values.pop("_target_", None))
    try:
        plugged_in = resolve_name(":".join(target.rsplit(".", 1)))
    except (ImportError, AttributeError, ValueError) as error:
        reason = readable(str(error), 200)
        raise UserError(field, "check its YAML", value=target, why=f"cannot be imported ({reason})") from error
    if not (isinstance(plugged_in, type) and issubclass(plugged_in, kind)):
        raise UserError(field, f"name a subclass of {kind.__name__}", value=target)
    return checked(where, plugged_in, values)


def _logger(node: Any) -> Logger | None:
    if _mapping("logger", node).get("_target_", "") is None:
        refuse_unknown("logger", [name for name in node if name != "_target_"], [])
        return None
    return plug_in("logger", Logger, node)


def _refuse_unwritable(where: str, value: Any) -> None:
    """Raise `UserError` for any value in a configuration that results files cannot store."""
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
            raise UserError(
                where, "write it in UTF-8", value=value, why="it contains bytes that are not text"
            ) from None


def _mapping(where: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(where, "choose a mapping of its settings, as in its YAML file", value=node)
    return node
