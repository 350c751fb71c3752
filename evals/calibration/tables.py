"""Draw maps of the traditional and semantic scores of all heads, from calibration files only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compresskv import calibration
from compresskv.calibration import Calibration
from compresskv.errors import UserError
from compresskv.selecting_heads import count_heads
from evals.experiments import usual_heads
from evals.files import safe_name
from evals.tables.table import Section, Shown, Texts
from evals.tables.text import left_out

if TYPE_CHECKING:
    from pandas import DataFrame

RANKINGS = ("traditional", "semantic")

BEST = 10
"""Number of heads of each ranking in the table."""

Shares = NDArray[np.float64]
"""Scores [layers, query heads], normalised to a sum of 1 over the whole model."""


@dataclass(frozen=True)
class Map:
    """Scores of a model's heads by both rankings. `prompts`: number of prompts that they are averaged over."""

    model: str
    source: str
    prompts: int
    shares: dict[str, Shares]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.source} calibration of {self.prompts} prompts"

    @property
    def stem(self) -> str:
        return f"figure-{safe_name('model', self.model)}-{self.source}-{self.prompts}"


def shown(results: Path, methods: Sequence[str]) -> Shown:
    """Return maps of every model with a calibration in `results`, in the user's cache or in the package."""
    maps, faults = _maps(results)
    if not maps:
        raise UserError(
            "experiment",
            "run `python run.py eval=calibrate` first",
            why=f"no calibration in {results / 'calibration'}, the user's cache or the package has scores of all heads",
        )
    texts = [Texts(f"The best {BEST} heads of {of_model.title}", HEADER, _best(of_model)) for of_model in maps]
    notes = [
        *map(_compared, maps),
        *left_out(faults),
        "For each ranking, shares are relative to the sum over all heads of the model.",
    ]
    figures = {of_model.stem: partial(_draw, of_model) for of_model in maps}
    return Shown(texts=texts, notes=notes, frames={"table": partial(_frame, maps)}, figures=figures)


def _maps(results: Path) -> tuple[list[Map], list[str]]:
    """Return the maps, with the maps of `results` first, and the faults of files. Shows equal scores of a model
    once."""
    known: list[tuple[str, list[Any]]] = []
    maps: list[Map] = []
    faults: list[str] = []
    for folder in (results / "calibration", *calibration.folders()):
        for path in sorted(folder.glob("*.json")):
            try:
                made = calibration.load(path)
                of_heads = [made.head_scores.get(ranking) for ranking in RANKINGS]
                if None in of_heads or (made.model, of_heads) in known:
                    continue
                shares = {ranking: _shares(made.scores(ranking)) for ranking in RANKINGS}
            except UserError as error:
                faults.append(str(error))
                continue
            known.append((made.model, of_heads))
            maps.append(Map(made.model, made.source, sum(made.accepted.values()), shares))
    return maps, faults


def _shares(scores: calibration.HeadScores) -> Shares:
    values = np.asarray(scores, dtype=float)
    return values / (values.sum() or 1)


def _best_places(shares: Shares) -> list[tuple[int, ...]]:
    """Return (layer, head) of the `BEST` heads; equal scores are in model order."""
    order = np.argsort(-shares, axis=None, kind="stable")[:BEST]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, shares.shape), strict=True)]


HEADER = ("rank", *(f"{ranking}: {what}" for ranking in RANKINGS for what in ("layer, head", "share in %")))


def _best(of_model: Map) -> list[list[str]]:
    by_ranking = [
        [(f"{layer}, {head}", f"{100 * shares[layer, head]:.2f}") for layer, head in _best_places(shares)]
        for shares in map(of_model.shares.__getitem__, RANKINGS)
    ]
    return [[str(rank), *chain.from_iterable(cells)] for rank, cells in enumerate(zip(*by_ranking, strict=True), 1)]


def _compared(of_model: Map) -> str:
    """Return a sentence on how well the rankings agree, and how many heads have a score of 0."""
    from scipy.stats import spearmanr

    traditional, semantic = (of_model.shares[ranking] for ranking in RANKINGS)
    both = set(_best_places(traditional)) & set(_best_places(semantic))
    none = [f"{int((of_model.shares[ranking] == 0).sum())} by {ranking} scores" for ranking in RANKINGS]
    rho = spearmanr(traditional, semantic, axis=None).statistic
    return (
        f"{of_model.title}: {len(both)} of the best {BEST} heads are the same by both rankings; Spearman's rank "
        f"correlation over all {semantic.size} heads is {rho:.2f}; heads without any score: {' and '.join(none)}."
    )


def _frame(maps: Sequence[Map]) -> "DataFrame":
    """Return a frame with one row for every head and ranking."""
    import pandas as pd

    frames = []
    for of_model in maps:
        place = {"model": of_model.model, "calibration": of_model.source, "prompts": of_model.prompts}
        for ranking, shares in of_model.shares.items():
            layers, heads = np.indices(shares.shape).reshape(2, -1)
            columns = {"ranking": ranking, "layer": layers, "head": heads, "share": shares.ravel().round(8)}
            frames.append(pd.DataFrame({**place, **columns}))
    return pd.concat(frames, ignore_index=True)


def _draw(of_model: Map) -> Any:
    """Draw a map of layers by heads, with a panel for each ranking."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from evals.niah.heatmap import COLOURS

    layers, heads = of_model.shares["semantic"].shape
    size = (2 * max(3.2, 0.16 * heads + 1.4), max(3.5, 0.16 * layers + 1))
    figure, axes = plt.subplots(1, len(RANKINGS), figsize=size, layout="constrained")
    for axis, ranking in zip(axes, RANKINGS, strict=True):
        image = axis.imshow(100 * of_model.shares[ranking], cmap=COLOURS, vmin=0, aspect="auto")
        axis.set_title(f"{ranking} scores", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("query head")
        axis.set_ylabel("layer")
        figure.colorbar(image, ax=axis, label="share of all scores (%)")
    figure.suptitle(of_model.title, fontsize=10)
    return figure


KINDS = {"semantic": "semantic", "semantic_count": "semantic, counted as released", "traditional": "traditional"}
"""Names of the kinds of scores on the results page."""


def files(results: Path) -> list[tuple[Path, str]]:
    """Return the calibration files in `results`, each with its model."""
    return [(path, path.name.rsplit(".", 2)[0]) for path in sorted(results.glob("calibration/*.json"))]


def sections(results: Path, models: Sequence[str]) -> tuple[Section, list[str]]:
    """Return maps of calibrations that runs of these models use or that are in `results`, and the faults of files."""
    paths: dict[Path, None] = {}
    known = {model.casefold() for model in models}
    for name in calibration.names():
        model, _, source = name.rpartition(".")
        if model.casefold() in known and (path := calibration.find_file(model, source)):
            paths[path] = None
    paths |= dict.fromkeys(sorted((results / "calibration").rglob("*.json")))
    maps: list[Mapping[str, Any]] = []
    problems: list[str] = []
    for path in paths:
        try:
            maps += _of_calibration(calibration.load(path))
        except UserError as error:
            problems.append(str(error))
    about = (
        "Scores of each query head from the model's calibration: layers are rows, heads are columns. Outlined heads "
        "select; the last column is the layer's share of the eviction error in per cent."
    )
    return Section("heads", "Heads", about, maps=maps), problems


def _of_calibration(made: Calibration) -> Iterator[dict[str, Any]]:
    about = {
        "model": made.model,
        "source": made.source,
        "selected": count_heads(usual_heads(), made, made.q_heads),
        "layers": [round(100 * score, 2) for score in made.layer_scores],
        "prompts": sum(made.accepted.values()),
    }
    for kind, scores in made.head_scores.items():
        cells = [[round(score, 4) for score in layer] for layer in scores]
        yield {**about, "kind": KINDS.get(kind, kind), "ranks": False, "cells": cells}
    for kind, ranked in made.rankings.items():
        yield {**about, "kind": f"{KINDS.get(kind, kind)}, ranks", "ranks": True, "cells": _ranks(ranked)}


def _ranks(ranked: Sequence[Sequence[int]]) -> list[list[int | None]]:
    """Return the rank of every head, 1 for the best; None for unranked heads."""
    heads = range(1 + max(map(max, ranked)))
    return [[layer.index(head) + 1 if head in layer else None for head in heads] for layer in ranked]
