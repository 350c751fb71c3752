"""What was measured on a model once: how much each head retrieves, how much each layer suffers from eviction.

One JSON file a model and source, `<model>.<source>.json`: `held_out` and `longbench` are made by
`python run.py eval=calibrate`, `published` are the figures that the paper's authors released.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from compresskv.errors import UserError
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Calibration:
    """`head_scores[kind][layer][query head]`; `rankings[kind][layer]` are query heads, best first.

    `heads` is the number of semantic retrieval heads a layer to use, `layer_scores` the share of each layer in the
    total error (they sum to 1). Layers are those that evict, in model order.
    """

    model: str
    source: str
    observation: ObservationConfig
    heads: int
    layer_scores: tuple[float, ...]
    head_scores: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict, hash=False)
    published_rankings: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict, hash=False)

    def top_heads(self, kind: str, count: int) -> tuple[tuple[int, ...], ...]:
        """The `count` best query heads of each layer by `kind` of score, ties to the lower head.

        Raises `UserError` if the calibration has no such scores or not that many heads.
        """
        if kind in self.head_scores:
            rankings = tuple(
                tuple(sorted(range(len(layer)), key=lambda head: (-layer[head], head)))
                for layer in self.head_scores[kind]
            )
        else:
            rankings = self.published_rankings.get(kind, ())
        if not rankings:
            raise self._has_no(kind, {*self.head_scores, *self.published_rankings})
        if not isinstance(count, int) or not 0 < count <= len(rankings[0]):
            raise UserError(
                f"method.scorer.heads={count}: the {self.source} calibration of {self.model} ranks "
                f"{len(rankings[0])} heads a layer, so choose 1 to {len(rankings[0])}"
            )
        return tuple(layer[:count] for layer in rankings)

    def kind_of_scores(self, kind: str, protocol: EvaluationProtocol) -> str:
        """The kind to ask for where `kind` is wanted: how `protocol` counts decides which semantic scores these are."""
        counted = kind == "semantic" and protocol.srh_multiplicity == "count"
        return "semantic_count" if counted and "semantic_count" in self.head_scores else kind

    def scores(self, kind: str) -> tuple[tuple[float, ...], ...]:
        """Scores of all query heads, [layer][head]. Raises `UserError` if the calibration has none of this `kind`."""
        if kind not in self.head_scores:
            raise self._has_no(kind, set(self.head_scores))
        return self.head_scores[kind]

    def _has_no(self, kind: str, others: set[str]) -> UserError:
        fix = f"choose one of {', '.join(sorted(others))}" if others else "run `python run.py eval=calibrate` first"
        return UserError(f"the {self.source} calibration of {self.model} has no {kind} head scores: {fix}")


def load(path: Path) -> Calibration:
    """Read one calibration file. Raises `UserError` for a file that is not one."""
    try:
        raw = json.loads(path.read_text())
        return Calibration(
            model=raw["model"],
            source=raw["source"],
            observation=ObservationConfig(**raw["observation"]),
            heads=raw["heads"],
            layer_scores=tuple(raw["layer_scores"]),
            head_scores={k: tuple(map(tuple, v)) for k, v in raw.get("head_scores", {}).items()},
            published_rankings={k: tuple(map(tuple, v)) for k, v in raw.get("rankings", {}).items()},
        )
    except OSError as error:
        raise UserError(f"calibration={path}: the file cannot be read ({error.strerror}): check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"calibration={path}: not a calibration file ({error!r}): calibrate the model again") from error


def find(model: str, source: str, folder: Path = FOLDER) -> Calibration | None:
    """The calibration of `model` from `source`, or None. `source` may also be the path of a file."""
    if source.endswith(".json"):
        return load(Path(source))
    path = folder / f"{model}.{source}.json"
    return load(path) if path.exists() else None
