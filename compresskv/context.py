"""The context of a method: the run's observation window, the model's shape and its calibration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from compresskv.calibration import Calibration, names, same
from compresskv.errors import UserError, note
from compresskv.eviction import Observation
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol


@dataclass(frozen=True)
class Context:
    """Context that is passed as the first argument to the functions that make a scorer or an allocator.

    `layers`: number of layers that evict. `first_prompt`: length (tokens) of the task's first sample in dataset order.
    `selecting_heads`: number of query heads per layer with which the method's scorer selects; None if the scorer has no
    such number, or is not built yet. `weights` and `fingerprint`: identify the weights and their files, as in a
    calibration. Without `check_weights`, calibrations of other weights are accepted too. `calibration_setting`: the
    setting by which `calibration` was found. `look_up`: returns the context with the model's weights and calibration.
    It is slow, so it is called only when a method asks for the calibration.
    """

    model: str
    layers: int
    q_heads: int
    kv_heads: int
    observation: ObservationConfig = ObservationConfig()
    protocol: EvaluationProtocol = EvaluationProtocol()
    calibration: Calibration | None = None
    first_prompt: int | None = None
    selecting_heads: int | None = None
    fingerprint: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict, hash=False)
    check_weights: bool = True
    calibration_setting: str = "auto"
    look_up: Callable[[], "Context"] | None = None

    @property
    def score_dtype(self) -> torch.dtype | None:
        """Dtype of the scores; None: the model's dtype."""
        return None if self.protocol.score_dtype == "model" else torch.float32

    @property
    def scoring(self) -> Observation:
        """The run's observation settings, in the form that a scorer uses."""
        observation = self.observation
        return Observation(observation.window, observation.kernel, observation.pooling, self.score_dtype)

    def calibrated(self, any_observation: bool = False) -> Calibration:
        """Return the model's calibration, made with its weights and for this observation.

        Raises `UserError` if it is missing or does not fit. `any_observation`: accept a calibration for another
        observation, for values that do not depend on it, such as the ranking of retrieval heads.
        """
        if self.look_up:
            return self.look_up().calibrated(any_observation)
        made = self.calibration
        if made is None:
            asked = self.calibration_setting
            source = self.protocol.calibration_data if asked == "auto" else asked
            raise UserError(
                "calibration",
                "run `python run.py eval=calibrate` with this model first, or choose another (available: "
                f"{', '.join(names())}; published: the authors' figures)",
                value=asked,
                why=f"the method needs a {source} calibration of {self.model}, which was not found",
            )
        for name in () if any_observation else ("window", "kernel", "pooling"):
            if getattr(made.observation, name) != getattr(self.observation, name):
                raise UserError(
                    f"observation.{name}",
                    "use this value, or calibrate again",
                    value=getattr(self.observation, name),
                    why=f"the {made.source} calibration of {made.model} was made with "
                    f"{getattr(made.observation, name)}",
                )
        if wrong := self._not_of_this_model(made):
            raise UserError("calibration", wrong[1], why=f"the {made.source} calibration of {made.model} {wrong[0]}")
        wanted = (self.calibration_setting, self.protocol.calibration_data)
        if wanted == ("auto", "held_out") and made.source == "published":
            note(
                f"calibration=auto: {self.model} has no held-out calibration, so the authors' published figures are "
                "used; their layer errors were measured on the LongBench test sets"
            )
        return made

    def _not_of_this_model(self, made: Calibration) -> tuple[str, str] | None:
        """Return why a calibration belongs to another model, and the fix; None if it may belong to this model."""
        calibrate = "calibrate this model"
        if self.check_weights and (wrong := self._of_other_weights(made)):
            return wrong, f"{calibrate}, or set calibration_check=off"
        if len(made.layer_scores) != self.layers:
            return f"has {len(made.layer_scores)} layers, but {self.model} has {self.layers} evicting layers", calibrate
        for scores in made.head_scores.values():
            if len(scores[0]) != self.q_heads:
                return f"has {len(scores[0])} query heads per layer, but {self.model} has {self.q_heads}", calibrate
        for ranked in made.rankings.values():
            if (last := max(map(max, ranked))) >= self.q_heads:
                return f"ranks head {last}, but {self.model} has {self.q_heads} query heads per layer", calibrate
        return None

    def _of_other_weights(self, made: Calibration) -> str | None:
        """Describe how a calibration's weights, or if unknown its files or its name, differ from this model's."""
        if made.weights and self.weights:
            same_model = same(made.weights, self.weights)
        elif made.model_fingerprint and self.fingerprint:
            same_model = made.model_fingerprint == self.fingerprint
        else:
            return None if made.model.casefold() == self.model.casefold() else f"is not for {self.model}"
        return None if same_model else f"was made with other weights than those of {self.model}"
