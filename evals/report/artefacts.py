"""The artefacts of an experiment, made from the results tree alone: tables, comparisons and a figure for each model."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from compresskv.methods import method_config
from evals.report import paper, tables
from evals.report.cells import Grid, grid
from evals.report.experiments import sweep
from evals.report.figure import save
from evals.report.items import Item, item
from evals.report.latex import latex
from evals.report.markdown import markdown
from evals.report.page import EVALS, Page
from evals.report.verdicts import verdicts
from evals.results.record import Record, records
from evals.results.store import refused, safe_name, write_text


def write(experiment: str, results: Path) -> list[Path]:
    """Write `results`/artefacts/<experiment>/; returns the paths.

    Raises `UserError` for an experiment that has no artefacts, and where none of its settings has results.
    """
    page = page_of(experiment, results)
    folder = results / "artefacts" / safe_name("experiment", experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    texts = {
        "table.md": markdown(page),
        "table.tex": latex(page),
        "table.csv": tables.means(page.grids).to_csv(index=False),
    }
    if page.verdicts:
        texts["comparisons.csv"] = tables.comparisons(page.verdicts).to_csv(index=False)
    for name, text in texts.items():
        write_text(folder / name, text)
    paths = [folder / name for name in texts]
    try:
        return paths + _figures(item(experiment), page.grids, folder)
    except OSError as error:
        raise refused(folder, error) from error


def page_of(experiment: str, results: Path) -> Page:
    """What an experiment shows of `results`. Raises `UserError` as `write` does."""
    of_item = item(experiment)
    chosen, evaluation = _chosen(experiment, results)
    chosen.sort(key=lambda record: record.model)
    by_model = [list(of_model) for _, of_model in groupby(chosen, key=lambda record: record.model)]
    grids = [paper.beside(experiment, grid(of_item, of_model)) for of_model in by_model]
    compared = []
    for of_model in grids:
        compared += verdicts(of_item, of_model)
    notes = []
    if chosen[0].eval != evaluation:
        name = EVALS.get(evaluation, evaluation)
        notes.append(f"Needles stand in for {name}, as at size=smoke: nothing here is a {name} score.")
    return Page(experiment, of_item.title, grids, compared, paper.others(experiment, grids), notes)


def _chosen(experiment: str, results: Path) -> tuple[list[Record], str]:
    """The records of an experiment's methods, whatever their model, budget and protocol; and its evaluation.

    Where it has none of its evaluation, needles stand in.
    """
    configs = sweep(f"experiment={experiment}", only="method")
    evaluation = configs[0]["eval"]["name"]
    order: dict[str, int] = {}
    nodes = []
    for config in configs:
        order.setdefault(method_config(config["method"]).name, len(order))
        nodes.append(config["method"])
    for name in dict.fromkeys([evaluation, "niah"]):
        usable = [record for record in records(results) if record.eval == name and record.covered and record.summary]
        usable = [record for record in usable if _same(record.config.get("method"), nodes)]
        if usable:
            return sorted(usable, key=lambda record: order.get(record.method, len(order))), evaluation
    raise UserError(
        f"experiment={experiment}: {results / 'runs'} has none of its results: "
        f"run `python run.py -m experiment={experiment}` first, or name the tree with results="
    )


def _same(node: Any, nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a result's method is one of an experiment's, parameters and all."""
    parts = [{key: value for key, value in other.items() if key != "plain"} for other in nodes]
    return isinstance(node, dict) and {key: value for key, value in node.items() if key != "plain"} in parts


def _figures(of_item: Item, grids: Sequence[Grid], folder: Path) -> list[Path]:
    if of_item.figure is None:
        return []
    from evals.report import curve, heatmap

    draw: Mapping[str, Callable[[Grid], Any]] = {
        "curve": curve.over_budget,
        "layers": curve.over_layers,
        "heatmap": heatmap.heatmaps,
    }
    paths = []
    for of_model in grids:
        stem = folder / f"figure-{safe_name('model.name', of_model.model)}"
        paths += save(draw[of_item.figure](of_model), stem)
    return paths
