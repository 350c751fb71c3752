"""One setting to run, as plain frozen data: what `run.py` makes of a composed configuration."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from baselines.registry import MethodConfig
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.models import ModelConfig
from compresskv.protocol import Protocol
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
    protocol: Protocol
    observation: Observation
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
    method = dict(config["method"])
    allocator = method.pop("allocator")
    standard = method.pop("default_allocator", allocator["name"])
    name, scorer = method.pop("name"), method.pop("scorer")
    full = name == "full"
    if allocator["name"] != standard and not full:
        name = f"{name}-{allocator['name']}"
    evaluation = config["eval"]
    model = {key: value for key, value in config["model"].items() if key != "evals"}  # defaults for conf/eval
    if evaluation["name"] not in EVALS:
        raise UserError(f"eval.name={evaluation['name']}: choose one of {', '.join(EVALS)}")
    budget = _check("budget", config["budget"], int)
    if budget < 1:
        raise UserError(f"budget={budget}: choose a number of tokens above the observation window")
    chunk = _check("prefill_chunk", config["prefill_chunk"], int | None)
    if chunk is not None and chunk < 1:
        raise UserError(f"prefill_chunk={chunk}: choose 1 or more tokens, or null")
    memory = _check("memory", config["memory"], float | None)
    if memory is not None and not 0 < memory < math.inf:
        raise UserError(f"memory={memory}: choose a number of GB above 0, or null for what is free")
    observation = checked("observation", Observation, config["observation"])
    _check_observation(observation)
    return Job(
        model=checked("model", ModelConfig, model),
        method=MethodConfig(name, scorer, allocator["target"], _frozen(method)),
        budget=None if full else budget,
        eval=checked("eval", EVALS[evaluation["name"]], evaluation),
        protocol=checked("protocol", Protocol, config["protocol"]),
        observation=observation,
        calibration=config["calibration"],
        prefill_chunk=chunk,
        memory=memory,
        results=Path(config["paths"]["results"]).expanduser(),
        logger=_frozen(config["logger"]),
        config=config,
    )


def _check_observation(observation: Observation) -> None:
    if observation.window < 1:
        raise UserError(f"observation.window={observation.window}: choose 1 or more tokens")
    if observation.kernel < 1 or observation.kernel % 2 == 0:
        raise UserError(f"observation.kernel={observation.kernel}: choose an odd number")
    if observation.pooling not in ("average", "max"):
        raise UserError(f"observation.pooling={observation.pooling}: choose average or max")


class _Frozen(dict):
    """A mapping that may be part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return _Frozen({key: tuple(v) if isinstance(v, list) else v for key, v in mapping.items()})


def checked(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    """Fill the dataclass `kind`, checking every value against the field's type."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind) if f.init}
    if unknown := set(values) - known:
        raise UserError(f"{name}.{sorted(unknown)[0]}: no such setting: choose one of {', '.join(sorted(known))}")
    return kind(**{key: _check(f"{name}.{key}", value, hints[key]) for key, value in values.items()})


def _check(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` wants it: lists become tuples, integers floats. Raises `UserError` otherwise."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is typing.Literal:
            if value in arguments:
                return value
            raise UserError(f"{name}={value}: choose one of {', '.join(map(str, arguments))}")
        if origin is tuple and isinstance(value, (list, tuple)):
            inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(inner) == len(value):
                return tuple(_check(f"{name}[{i}]", v, t) for i, (v, t) in enumerate(zip(value, inner, strict=True)))
        elif origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        elif option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif option is type(None) and value is None:  # noqa: SIM114
            return value
        elif (
            isinstance(option, type)
            and origin is None
            and isinstance(value, option)
            and not _bool_as_int(value, option)
        ):
            return value
    wanted = " or ".join("nothing" if o is type(None) else _readable(o) for o in options)
    raise UserError(f"{name}={value}: expected {wanted}")


def _bool_as_int(value: Any, option: Any) -> bool:
    return option is int and isinstance(value, bool)


def _readable(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "a list")
