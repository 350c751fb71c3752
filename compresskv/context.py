"""What a method may know besides the prompt: the run's observation window, the model's shape, its calibration."""

from dataclasses import dataclass

import torch

from compresskv.calibration import Calibration
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol


@dataclass(frozen=True)
class Context:
    """Handed to the functions that make a scorer or an allocator from configuration.

    `layers` counts those that evict. `first_prompt` is the length, in tokens, of the task's first sample in dataset
    order.
    """

    model: str
    layers: int
    q_heads: int
    kv_heads: int
    observation: ObservationConfig = ObservationConfig()
    protocol: EvaluationProtocol = EvaluationProtocol()
    calibration: Calibration | None = None
    first_prompt: int | None = None

    @property
    def score_dtype(self) -> torch.dtype | None:
        """In which scores are computed; None: the model's."""
        return None if self.protocol.score_dtype == "model" else torch.float32

    @property
    def scoring(self) -> Observation:
        """The run's observation as a scorer uses it."""
        observation = self.observation
        return Observation(observation.window, observation.kernel, observation.pooling, self.score_dtype)

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
