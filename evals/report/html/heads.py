"""Head-score maps of the page, from the calibrations of the models that the results are of."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compresskv import calibration
from compresskv.calibration import Calibration
from compresskv.errors import UserError
from compresskv.selecting_heads import count_heads
from evals.report.selection import default_setting

TITLES = {"semantic": "semantic", "semantic_count": "semantic, counted as released", "traditional": "traditional"}


def maps(models: Iterable[str], results: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The maps of every calibration of these models, and a phrase for each file that cannot be read."""
    shown: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in _files(set(models), results):
        try:
            made = calibration.load(path)
        except UserError as error:
            problems.append(str(error))
            continue
        shown += _of_calibration(made)
    return shown, problems


def _files(models: set[str], results: Path) -> list[Path]:
    """The calibrations that runs find for these models, then those that were kept with the results."""
    files: dict[Path, None] = {}
    for name in calibration.names():
        model, _, source = name.rpartition(".")
        if model.casefold() in {known.casefold() for known in models} and (
            path := calibration.find_file(model, source)
        ):
            files[path] = None
    files |= dict.fromkeys(sorted((results / "calibration").rglob("*.json")))
    return list(files)


def _of_calibration(made: Calibration) -> Iterable[dict[str, Any]]:
    about = {
        "model": made.model,
        "source": made.source,
        "selected": count_heads(default_setting(), made, made.q_heads),
        "layers": [round(100 * score, 2) for score in made.layer_scores],
        "prompts": sum(made.accepted.values()),
    }
    for kind, scores in made.head_scores.items():
        cells = [[round(score, 4) for score in layer] for layer in scores]
        yield {**about, "kind": TITLES.get(kind, kind), "ranks": False, "cells": cells}
    for kind, ranked in made.rankings.items():
        yield {**about, "kind": f"{TITLES.get(kind, kind)}, ranks", "ranks": True, "cells": _ranks(ranked)}


def _ranks(ranked: Sequence[Sequence[int]]) -> list[list[int | None]]:
    """The rank of every head, 1 for the best; None for heads that the calibration does not rank."""
    heads = 1 + max(max(layer) for layer in ranked)
    cells: list[list[int | None]] = []
    for layer in ranked:
        places = {head: rank for rank, head in enumerate(layer, 1)}
        cells.append([places.get(head) for head in range(heads)])
    return cells
