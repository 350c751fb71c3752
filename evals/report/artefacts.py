"""The artefacts of an experiment, created from the results tree alone: tables, comparisons and figures."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from compresskv.methods import method_config
from evals.console import screen, visible
from evals.experiments import Item, heads_label, item
from evals.files import safe_name, write_text
from evals.report import paper
from evals.report.csv import comparisons, csv_text, means
from evals.report.latex import Columns, appendix, latex
from evals.report.markdown import markdown
from evals.report.page import Page
from evals.report.selection import chosen, default_heads, nothing, settings_of
from evals.results.means import Asked
from evals.results.shows import hook
from evals.results.tails import tails
from evals.tables import text
from evals.tables.compare import subject_of, unpaired, verdicts
from evals.tables.table import OTHERS, Shown, Table, Texts


def write(
    experiment: str, results: Path, columns: Columns = "tasks", margins: Mapping[str, float] | None = None
) -> list[Path]:
    """Write `results`/artefacts/<experiment>/ and return the paths.

    `columns` selects tasks or groups of tasks as the columns of LaTeX tables. `margins`: margins of equivalence by
    metric, instead of the defaults of the metrics. Raises `UserError` if the experiment has no artefacts, or its
    settings have no results.
    """
    page = page_of(experiment, results, margins)
    folder = results / "artefacts" / safe_name("experiment", experiment)
    texts = {
        "table.md": markdown(page),
        "table.tex": latex(page, columns),
        "table-appendix.tex": appendix(page, columns),
    }
    texts |= {f"{name}.csv": csv_text(frame()) for name, frame in page.frames.items()}
    for name, content in texts.items():
        write_text(folder / name, visible(content))
    paths = [folder / name for name in texts]
    for name, draw in page.figures.items():
        from evals.tables.figures import save

        paths += save(draw(), folder / name)
    return paths


def write_after_run(experiment: str, results: Path) -> None:
    """Write the artefacts of an experiment, and print their folder, or why it has no artefacts yet."""
    try:
        said = f"artefacts: {write(experiment, results)[0].parent}"
    except UserError as error:
        said = f"no artefacts: {error}"
    screen().print(said, soft_wrap=True, markup=False)


def page_of(experiment: str, results: Path, margins: Mapping[str, float] | None = None) -> Page:
    """Return the tables, comparisons and figures of an experiment in `results`. Raises `UserError` like `write`."""
    of_item = replace(item(experiment), margins=margins or {})
    return _measured(experiment, of_item, results) if of_item.source else _runs(experiment, of_item, results)


def _measured(experiment: str, of_item: Item, results: Path) -> Page:
    """Return the page of an evaluation that writes its own files."""
    methods = [method_config(config["method"]).name for config in settings_of(experiment, None)]
    try:
        found: Shown = hook(of_item.source, "shown")(results, methods)
    except UserError as error:
        raise UserError("experiment", error.fix, value=experiment, why=error.why) from error
    if not found.tables and not found.texts:
        raise nothing(experiment, results / of_item.source)
    frames = ({"table": partial(means, found.tables)} if found.tables else {}) | dict(found.frames)
    others = paper.others(experiment, found.tables)
    return Page(name=experiment, title=of_item.title, others=others, **vars(replace(found, frames=frames)))


def _runs(experiment: str, of_item: Item, results: Path) -> Page:
    """Return the page of an experiment whose settings are in results/runs."""
    records, evaluation, faults = chosen(experiment, results)
    asked = Asked(of_item.label, of_item.view)
    of_models: list[list[Table]] = []
    appendix: list[Texts] = []
    notes: list[str] = []
    remarks: list[str] = []
    for _, group in groupby(records, key=lambda record: record.model):
        of_model = list(group)
        kind = of_model[0].kind
        tables = hook(kind, "tables")(of_model, asked)
        of_models.append([paper.beside(experiment, table) for table in tables if table.columns])
        appendix += hook(kind, "appendix", tails)(of_model, asked)
        remarks += hook(kind, "notes", lambda *_: [])(of_model, tables, of_item.view)
        if of_item.label is heads_label:
            notes += default_heads(of_model)
    every = [table for of_model in of_models for table in of_model]
    if not every:
        raise nothing(experiment, results / "runs")
    compared = [verdict for table in every for verdict in verdicts(of_item, table)]
    # Use only the first table of each model: its other tables have the same samples.
    notes += [note for of_model in of_models for note in unpaired(of_model[0])]
    kind = records[0].kind
    if records[0].eval != evaluation:
        name = text.title_of(evaluation)
        section = hook(kind, "SECTION", OTHERS)
        notes.append(f"{section.title} replace {name}: nothing here is a {name} score.")
    notes += [*remarks, *text.left_out(faults)]
    frames: dict[str, Callable[[], Any]] = {"table": partial(means, every)}
    if compared:
        frames["comparisons"] = partial(comparisons, compared)
    question = replace(of_item, subject=subject_of(of_item, every[0]))
    by = {verdict.metric for verdict in compared}
    family = question.family(table.metric for table in every if table.metric.field in by) if compared else ""
    drawn = [of_model[0] for of_model in of_models if of_model] if of_item.figure else []
    return Page(
        name=experiment,
        title=of_item.title,
        tables=every,
        verdicts=compared,
        others=paper.others(experiment, every),
        appendix=appendix,
        notes=notes,
        frames=frames,
        figures={
            f"figure-{text.file_part(table.model)}": partial(_draw, of_item.figure, kind, table) for table in drawn
        },
        family=family,
    )


def _draw(figure: str | None, kind: str, table: Table) -> Any:
    """Draw the figure of a table (`Item.figure`)."""
    from evals.tables.figures import over_budget, over_columns

    if figure == "own":
        return hook(kind, "figure", over_budget)(table)
    return over_budget(table) if figure == "budgets" else over_columns([table])
