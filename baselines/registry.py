"""From a method's configuration to the method."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any

import torch

from compresskv.context import Context
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod


@dataclass(frozen=True)
class MethodConfig:
    """`conf/method/*.yaml`: `scorer` and `allocator` name functions of a `Context`, as `package.module:function`.

    `parameters` are the method's own settings.
    """

    name: str
    scorer: str
    allocator: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def build(config: MethodConfig, context: Context) -> EvictionMethod:
    """The method for one model, run and protocol. Raises `UserError` for what it needs and lacks."""
    observation = context.observation
    if context.protocol.score_dtype == "model":
        observation = replace(observation, dtype=None)
    elif observation.dtype is None:
        observation = replace(observation, dtype=torch.float32)
    context = replace(context, observation=observation, parameters=_Parameters(config.parameters))
    return EvictionMethod(_resolve(config, config.scorer)(context), _resolve(config, config.allocator)(context))


_EXPECTED: dict[type, tuple[Any, str]] = {
    float: ((int, float), "a number"),
    int: (int, "a whole number"),
    str: (str, "a name"),
}


class _Parameters(dict):
    """A method's parameters: one that is not of the type of the default it is asked with is refused."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `name`; a default of 1.0 asks for any number, 1 for a whole one. Raises `UserError`."""
        value = super().get(name, default)
        if type(default) in _EXPECTED:
            kind, wanted = _EXPECTED[type(default)]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"method.{name}={value}: expected {wanted}")
        return value


def _resolve(config: MethodConfig, name: str) -> Any:
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"method={config.name}: {name} cannot be imported ({error}): check its YAML") from error
