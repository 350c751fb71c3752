"""An item as a Markdown page."""

from collections.abc import Sequence

from evals.report.cells import Cell, Grid, ranks
from evals.report.labels import METHODS
from evals.report.page import (
    VERDICT_COLUMNS,
    Page,
    Plain,
    bounds,
    budget_text,
    columns,
    heading,
    mean_text,
    notes,
    paper,
    partial,
    published_column,
    verdict_texts,
)
from evals.report.verdicts import Verdict
from evals.results.published import Published


def markdown(page: Page) -> str:
    """The whole page: a table for each model, then the comparisons, then what else was published."""
    parts = [f"# {_plain(page.title)}"]
    for grid in page.grids:
        parts += [f"## {_plain(heading(grid))}", _grid(grid)]
    for table in page.plain:
        parts += [f"## {_plain(table.title)}", _texts(table)]
    parts += [_plain(note) for note in notes(page)]
    if page.verdicts:
        parts += ["## Paired comparisons", *([page.family] if page.family else []), _verdicts(page.verdicts)]
    if page.others:
        parts += ["## Published numbers with none of ours beside them: not comparable", _published(page.others)]
    return "\n\n".join(parts) + "\n"


def _grid(grid: Grid) -> str:
    header = ["budget", "method", *map(" ".join, columns(grid).values())]
    body = []
    for budget, rows in grid.budgets.items():
        ranked = {column: ranks(column, rows, grid.metric) for column in grid.columns}
        for place, row in enumerate(rows):
            cells = [
                _cell(row.cells[column], ranked[column].get(place)) if column in row.cells else "–"
                for column in grid.columns
            ]
            body.append([budget_text(budget), _plain(row.label), *cells])
    return _table([_plain(name) for name in header], body)


def _texts(table: Plain) -> str:
    return _table([_plain(name) for name in table.header], [[_plain(text) for text in row] for row in table.body])


def _cell(cell: Cell, rank: int | None) -> str:
    mean = mean_text(cell)
    mean = {1: f"**{mean}**", 2: f"<u>{mean}</u>"}.get(rank or 0, mean)
    return " ".join(filter(None, [mean, bounds(cell.interval, cell.digits), partial(cell), _plain(paper(cell))]))


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    return _table(VERDICT_COLUMNS, [[_plain(text) for text in verdict_texts(verdict)] for verdict in verdicts])


def _published(rows: Sequence[Published]) -> str:
    """A row for every model, method and budget, a column for whatever was published of them."""
    measures = list(dict.fromkeys(published_column(row) for row in rows))
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        budget = "–" if row.budget is None and row.method != METHODS["full"] else budget_text(row.budget)
        place = (row.model or "not named", budget, row.method, row.source)
        table.setdefault(place, {})[published_column(row)] = f"{row.value:g}"
    header = ["model", "budget", "method", "source", *measures]
    body = [[*place, *(values.get(measure, "") for measure in measures)] for place, values in table.items()]
    noted: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.note:
            noted.setdefault(row.note, {})[row.method] = None
    shown = _table([_plain(name) for name in header], [[_plain(text) for text in line] for line in body])
    return "\n".join(
        [shown, "", *(f"- {_plain(', '.join(methods))}: {_plain(note)}" for note, methods in noted.items())]
    )


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that is no markup, on one line."""
    for character in "\\|*_`<>[]#$~&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
