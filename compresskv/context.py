"""What a method may know besides the prompt: the run's observation window, the model's shape, its calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compresskv.calibration import Calibration
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.protocol import Protocol


@dataclass(frozen=True)
class Context:
    """Handed to the functions that make a scorer or an allocator from configuration.

    `layers` counts those that evict. `parameters` are the method's own settings. `first_prompt` is the length, in
    tokens, of the task's first sample in dataset order. `taus` are CAKE's (tau1, tau2) of the model: for budgets up to
    256 tokens, and for larger ones.
    """

    model: str
    layers: int
    q_heads: int
    kv_heads: int
    observation: Observation = Observation()
    protocol: Protocol = Protocol()
    calibration: Calibration | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    first_prompt: int | None = None
    taus: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 1.0), (1.0, 1.0))

    def calibrated(self) -> Calibration:
        """The model's calibration, made for this observation window. Raises `UserError` without one."""
        if self.calibration is None:
            raise UserError(
                f"there is no {self.protocol.calibration_data} calibration of {self.model}, which this method needs: "
                f"run `python run.py eval=calibrate model={self.model}` first, or set calibration=published "
                "for the authors' figures where they exist"
            )
        made, used = self.calibration.observation, self.observation
        for name in ("window", "kernel", "pooling"):
            if getattr(made, name) != getattr(used, name):
                raise UserError(
                    f"observation.{name}={getattr(used, name)}, but the {self.calibration.source} calibration of "
                    f"{self.model} was made with {getattr(made, name)}: use that, or calibrate again"
                )
        if len(self.calibration.layer_scores) != self.layers:
            raise UserError(
                f"the calibration of {self.calibration.model} has {len(self.calibration.layer_scores)} layers, "
                f"{self.model} has {self.layers} that evict: calibrate it again"
            )
        widths = {len(layer) for layers in self.calibration.head_scores.values() for layer in layers}
        if widths - {self.q_heads}:
            raise UserError(
                f"the calibration of {self.calibration.model} has scores of {max(widths)} query heads a layer, "
                f"{self.model} has {self.q_heads}: calibrate it again"
            )
        return self.calibration
