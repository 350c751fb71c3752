"""The artefacts of an experiment, made from the results tree alone: tables, comparisons and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from evals.console import visible
from evals.kinds import TITLES
from evals.report import attention, efficiency, heads, masking, paper, tables
from evals.report.cells import Grid
from evals.report.csv import csv_text
from evals.report.grids import grids
from evals.report.items import Item, item
from evals.report.labels import heads_label
from evals.report.latex import Columns, appendix, latex
from evals.report.markdown import markdown
from evals.report.needles import agreement_of_orders
from evals.report.page import Page, file_part, left_out
from evals.report.selection import chosen, default_heads, nothing
from evals.report.verdicts import family_of, subject_of, unpaired, verdicts
from evals.results.record import Record
from evals.results.store import refused, safe_name, write_text


def write(experiment: str, results: Path, columns: Columns = "tasks") -> list[Path]:
    """Write `results`/artefacts/<experiment>/; returns the paths. `columns`: of the LaTeX tables of LongBench.

    Raises `UserError` for an experiment that has no artefacts, and where none of its settings has results.
    """
    page = page_of(experiment, results)
    folder = results / "artefacts" / safe_name("experiment", experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    texts = {"table.md": markdown(page), "table.tex": latex(page, columns)}
    texts["table-appendix.tex"] = appendix(page, columns)
    for name, frame in page.frames.items():
        texts[f"{name}.csv"] = csv_text(frame())
    for name, text in texts.items():
        write_text(folder / name, visible(text))
    paths = [folder / name for name in texts]
    try:
        for name, draw in page.figures.items():
            from evals.report.figure import save

            paths += save(draw(), folder / name)
    except OSError as error:
        raise refused(folder, error) from error
    return paths


def page_of(experiment: str, results: Path) -> Page:
    """What an experiment shows of `results`. Raises `UserError` as `write` does."""
    of_item = item(experiment)
    page_from = {
        "runs": _runs,
        "efficiency": efficiency.page,
        "attention": attention.page,
        "calibrations": heads.page,
    }
    return page_from[of_item.source](experiment, of_item, results)


def _runs(experiment: str, of_item: Item, results: Path) -> Page:
    """From the settings of results/runs."""
    records, evaluation, faults = chosen(experiment, results)
    of_models: list[list[Grid]] = []
    notes = []
    for _, group in groupby(records, key=lambda record: record.model):
        of_model = list(group)
        of_models.append([paper.beside(experiment, grid) for grid in _grids(of_item, of_model) if grid.columns])
        if of_item.columns == "masked":
            notes.append(masking.note(of_model))
        if of_item.label is heads_label:
            notes += default_heads(of_model)
    every = [grid for of_model in of_models for grid in of_model]
    if not every:
        raise nothing(experiment, results / "runs")
    compared = []
    for grid in every:
        compared += verdicts(of_item, grid)
    # Once for a model: its other grids are of the same samples.
    notes += [note for of_model in of_models for note in unpaired(of_model[0])]
    if records[0].eval != evaluation:
        name = TITLES.get(evaluation, evaluation)
        notes.append(f"Needles stand in for {name}, as at size=smoke: nothing here is a {name} score.")
    if of_item.columns == "needles":
        notes += agreement_of_orders(every)
    notes += left_out(faults)
    frames = {"table": partial(tables.means, every)}
    if compared:
        frames["comparisons"] = partial(tables.comparisons, compared)
    others = paper.others(experiment, every)
    figures = _figures(of_item, [of_model[0] for of_model in of_models if of_model])
    family = family_of(replace(of_item, subject=subject_of(of_item, every[0]))) if compared else ""
    return Page(experiment, of_item.title, every, compared, others, notes, (), frames, figures, family)


def _grids(of_item: Item, of_model: Sequence[Record]) -> list[Grid]:
    return [masking.grid(of_model)] if of_item.columns == "masked" else grids(of_item, of_model)


def _figures(of_item: Item, of_models: Sequence[Grid]) -> dict[str, Callable[[], Any]]:
    """One of the first grid of each model, by the name of its file."""
    if of_item.figure is None:
        return {}
    from evals.report import curve, heatmap

    draw: Mapping[str, Callable[[Grid], Any]] = {
        "curve": curve.over_budget,
        "layers": curve.over_layers,
        "masked": curve.over_masked,
        "heatmap": heatmap.heatmaps,
    }
    return {f"figure-{file_part(g.model)}": partial(draw[of_item.figure], g) for g in of_models}
