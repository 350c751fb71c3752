"""Calibrations: how much each head of a model retrieves, and how much each layer suffers from eviction.

Each model and source has one JSON file, `<model>.<source>.json`. `python run.py eval=calibrate` makes `held_out`, or
`held_out_context` with `eviction.when=context`, or `longbench`. `published` contains the values that the paper's
authors released. A file is checked when it is read. `Context.calibrated` checks that it fits the model and the run.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Annotated, Any

from compresskv.checking import Ge, Le, MinLen, Name, checked_value
from compresskv.errors import UserError, located, note, readable
from compresskv.folders import cache_folder
from compresskv.inputs import expanded, read_once
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol

FOLDER = Path(__file__).parent
"""Folder of the calibrations that come with the package."""

UNNAMED = ("held_out", "longbench", "published")
"""Sources to search, in order, if no source is named."""

SOURCES = (*UNNAMED, "held_out_context")

AUTO = {"held_out": ("held_out", "published"), "longbench": ("longbench", "published")}
"""Sources that `calibration=auto` searches, in order, by the protocol's `calibration_data`."""

SUM_TOLERANCE = 1e-4
"""Allowed difference between the sum of layer scores and 1. The scores are rounded to 8 digits."""

HeadScores = tuple[Annotated[tuple[Annotated[float, Ge(0), Le(1e30)], ...], MinLen(1)], ...]
"""Scores as [layer][query head], bounded so that the sum over all heads is finite in float32."""

Rankings = tuple[Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)], ...]
"""Query heads as [layer][rank], best first."""

Place = tuple[int, int]
"""Layer and query head."""

LayerShares = Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], MinLen(1)]
"""Each layer's share of the total error, as [layer]."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of one model from one source. Layers are the layers that evict, in model order.

    `head_scores[kind][layer][query head]`; `rankings[kind][layer]` lists query heads, best first. `heads`: number of
    semantic retrieval heads per layer that the calibration chose. `layer_scores`: each layer's share of the total
    error, measured with `heads` heads (the shares sum to 1). `layer_scores_by_head_count`: the same with other numbers
    of heads, if measured.

    `weights` identifies the weights that the calibration was made with (`loaded_weights.fingerprints`), and
    `model_fingerprint` their files. Files of older versions have only `model_fingerprint`, and published files have
    neither field. `no_scores[kind]` says why there are no scores of a kind. `accepted` counts the prompts that the
    calibration was made from, by needle or task.
    """

    model: Name
    source: Name
    observation: ObservationConfig
    heads: Annotated[int, Ge(1)]
    layer_scores: LayerShares
    layer_scores_by_head_count: Mapping[str, LayerShares] = field(default_factory=dict, hash=False)
    head_scores: Mapping[str, HeadScores] = field(default_factory=dict, hash=False)
    rankings: Mapping[str, Rankings] = field(default_factory=dict, hash=False)
    weights: Mapping[str, str] = field(default_factory=dict, hash=False)
    model_fingerprint: str | None = None
    no_scores: Mapping[str, str] = field(default_factory=dict, hash=False)
    accepted: Mapping[str, Annotated[int, Ge(0)]] = field(default_factory=dict, hash=False)

    @property
    def q_heads(self) -> int:
        """Number of query heads per layer. Without head scores and rankings, the calibration's `heads`."""
        tables = (*self.head_scores.values(), *self.rankings.values())
        return max((len(table[0]) for table in tables), default=self.heads)

    def top_heads(self, kind: str, count: int) -> tuple[tuple[int, ...], ...]:
        """Return the `count` best query heads of each layer by `kind` of score, ties to the lower head.

        Raises `UserError` if the calibration has no such scores, fewer heads, or the same score for all heads.
        """
        if kind in self.head_scores:
            if all(len(set(layer)) == 1 and len(layer) > count for layer in self.head_scores[kind]):
                raise self._says_nothing(kind)
            ranked: Rankings = tuple(
                tuple(sorted(range(len(layer)), key=lambda head: (-layer[head], head)))
                for layer in self.head_scores[kind]
            )
        elif kind in self.rankings:
            ranked = self.rankings[kind]
        else:
            raise self._has_no(kind, {*self.head_scores, *self.rankings})
        if not 0 < count <= len(ranked[0]):
            raise UserError(
                "method.scorer.heads",
                f"choose 1 to {len(ranked[0])}",
                value=count,
                why=f"the {self.source} calibration of {self.model} ranks {len(ranked[0])} heads per layer",
            )
        return tuple(layer[:count] for layer in ranked)

    def layer_scores_with(self, heads: int) -> tuple[float, ...]:
        """Return the layers' shares of the error, measured with `heads` selecting heads per layer.

        If `heads` was not measured, uses the nearest number (the smaller of two) and warns once.
        """
        measured = {int(count): scores for count, scores in self.layer_scores_by_head_count.items()}
        measured[self.heads] = self.layer_scores
        nearest = min(measured, key=lambda count: (abs(count - heads), count))
        if nearest != heads:
            note(
                f"the {self.source} calibration of {self.model} has no layer errors for {heads} selecting heads; "
                f"the layer errors for {nearest} are used"
            )
        return measured[nearest]

    def kind_of_scores(self, kind: str, protocol: EvaluationProtocol) -> str:
        """Return the kind of head scores to use for `kind`. The `protocol` decides which semantic scores count."""
        counted = kind == "semantic" and protocol.srh_multiplicity == "count"
        return "semantic_count" if counted and "semantic_count" in self.head_scores else kind

    def scores(self, kind: str) -> HeadScores:
        """Return the scores of all query heads, [layer][head].

        Raises `UserError` if the calibration has no scores of this `kind`, or the same score for every head.
        """
        if kind not in self.head_scores:
            raise self._has_no(kind, set(self.head_scores))
        scores = [score for layer in self.head_scores[kind] for score in layer]
        if len(scores) > 1 and len(set(scores)) == 1:
            raise self._says_nothing(kind)
        return self.head_scores[kind]

    def _says_nothing(self, kind: str) -> UserError:
        return UserError(
            "calibration",
            "choose other head scores, or calibrate the model again",
            why=f"the {self.source} calibration of {self.model} has the same {kind} score for all heads, so the heads "
            f"cannot be ranked",
        )

    def _has_no(self, kind: str, others: set[str]) -> UserError:
        reason = f", since {self.no_scores[kind]}" if kind in self.no_scores else ""
        fix = f"choose one of {', '.join(sorted(others))}" if others else "run `python run.py eval=calibrate` first"
        return UserError(
            "calibration", fix, why=f"the {self.source} calibration of {self.model} has no {kind} head scores{reason}"
        )


def load(path: Path, content: bytes | None = None) -> Calibration:
    """Read and check one calibration file. `content`: its content, if it was read already.

    Raises `UserError` naming the file, the field and what is wrong.
    """
    if content is None:
        content = read_once(path, "calibration")
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            "calibration", "calibrate the model again", value=path, why=f"not a calibration file ({why})"
        ) from error
    if not isinstance(raw, Mapping):
        raise UserError(
            "calibration", "calibrate the model again", value=path, why="not a calibration file (it is not a mapping)"
        )
    known = {name: value for name, value in raw.items() if name in Calibration.__dataclass_fields__}
    with located(path):
        made = checked_value("", Calibration, known)
    if wrong := _inconsistent(made):
        raise UserError(wrong[0], "correct the file, or calibrate the model again", why=wrong[1], where=path)
    return made


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"it contains the key {readable(min(twice))} twice")
    return dict(pairs)


def _inconsistent(made: Calibration) -> tuple[str, str] | None:
    """Return the first field of a calibration that contradicts its other fields, and how."""
    layers = len(made.layer_scores)
    shares = {"layer_scores": made.layer_scores}
    for count, of_count in made.layer_scores_by_head_count.items():
        if not (count.isascii() and count.isdigit() and int(count)):
            return f"layer_scores_by_head_count[{readable(count)}]", "its keys must be numbers of heads"
        shares[f"layer_scores_by_head_count[{count}]"] = of_count
    for name, of_layers in shares.items():
        if abs((total := math.fsum(of_layers)) - 1) > SUM_TOLERANCE:
            return name, f"the sum is {total:g}, not 1"
        if len(of_layers) != layers:
            return name, f"it has {len(of_layers)} layers, but layer_scores has {layers}"
    tables: dict[str, Sequence[Sequence[float]]] = {f"head_scores.{kind}": v for kind, v in made.head_scores.items()}
    tables |= {f"rankings.{kind}": ranked for kind, ranked in made.rankings.items()}
    width: dict[str, int] = {}
    for name, table in tables.items():
        if len(table) != layers:
            return name, f"it has {len(table)} layers, but layer_scores has {layers}"
        sort = name if name.startswith("rankings") else "head_scores"
        for index, layer in enumerate(table):
            if len(layer) != width.setdefault(sort, len(layer)):
                return f"{name}[{index}]", f"it has {len(layer)} heads, but other layers have {width[sort]}"
            if sort != "head_scores" and len(set(layer)) != len(layer):
                return f"{name}[{index}]", "it names a head twice"
            if sort != "head_scores" and max(layer) >= width.get("head_scores", math.inf):
                return f"{name}[{index}]", f"it names head {max(layer)}, but a layer has {width['head_scores']}"
    most = made.q_heads
    return ("heads", f"it is {made.heads}, but the file has {most} heads per layer") if made.heads > most else None


def folders() -> tuple[Path, ...]:
    """Return the folders that are searched for calibrations, the user's own first."""
    return (cache_folder() / "calibration", FOLDER)


def names() -> list[str]:
    """Return the names of the calibrations in all folders, as `<model>.<source>`, sorted."""
    existing: set[str] = set()
    for folder in folders():
        existing |= {path.name.removesuffix(".json") for path in folder.glob("*.json")}
    return sorted(existing)


def find(model: str, source: str, folder: Path | None = None) -> Calibration | None:
    """Return the calibration of `model` (case-insensitive) from `source`; None if no folder has it."""
    path = find_file(model, source, folder)
    return load(path) if path else None


def find_file(model: str, source: str, folder: Path | None = None) -> Path | None:
    """Return the file that `find` reads: in `folder`, if given, else in the first of the `folders` that has it."""
    wanted = f"{model}.{source}.json".casefold()
    for searched in (folder,) if folder else folders():
        for path in sorted(searched.glob("*.json")):
            if path.name.casefold() == wanted:
                return path
    return None


def choose(
    model: str, setting: str, protocol: EvaluationProtocol, weights: Mapping[str, str] | None = None
) -> Calibration | None:
    """Return the calibration that the `setting` of a run selects: auto, a source, or the path of a file.

    Returns None if this model has no calibration; only methods that need one raise an error then. Raises `UserError`
    for an invalid file, and for an unknown source.
    """
    if setting == "auto":
        sources: tuple[str, ...] = AUTO[protocol.calibration_data]
    elif setting.endswith(".json") or "/" in setting:
        return load(expanded(setting, "calibration"))
    else:
        sources = (setting,)
    if made := of_model(model, weights, sources):
        return made
    if setting not in ("auto", *SOURCES):
        nearest = difflib.get_close_matches(setting, SOURCES, 1)
        fix = f"did you mean {nearest[0]}?" if nearest else "choose auto, a source or the path of a file"
        raise UserError(
            "calibration", f"{fix} (available: {', '.join(names())})", value=setting, why=f"not found for {model}"
        )
    return None


def of_model(
    name: str, weights: Mapping[str, str] | None = None, sources: Sequence[str] = UNNAMED
) -> Calibration | None:
    """Return the calibration of the model with these `weights`, from the first of `sources`, or else by `name`.

    `Context.calibrated` checks whether a calibration found by name was made with other weights.
    """
    for source in sources if weights else ():
        for path in (path for folder in folders() for path in sorted(folder.glob(f"*.{escape(source)}.json"))):
            with suppress(UserError):  # an invalid file may belong to another model
                if same((made := load(path)).weights, weights or {}):
                    return made
    return next((named for source in sources if (named := find(name, source))), None)


def best_first(scores: HeadScores) -> list[Place]:
    """Return all heads of all layers, best first; equal scores are in model order."""
    places = [(layer, head) for layer, heads in enumerate(scores) for head in range(len(heads))]
    return sorted(places, key=lambda place: -scores[place[0]][place[1]])


def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two models have the same weights, by their `loaded_weights.fingerprints`."""
    return any(other.get(dtype) == digest for dtype, digest in one.items())
