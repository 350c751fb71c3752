"""Write a page as Markdown. Tables are written here, because no dependency escapes markup in cells."""

from collections.abc import Iterable, Sequence

from evals.report.page import Page
from evals.results.published import Published
from evals.tables import text
from evals.tables.methods import METHODS
from evals.tables.table import Cell, Table, Texts


def markdown(page: Page) -> str:
    """Return the whole page: a table for each model, the comparisons, and other published numbers."""
    parts = [f"# {_plain(page.title)}"]
    for table in page.tables:
        parts += [f"## {_plain(text.heading(table))}", _means(table)]
    for texts in page.texts:
        parts += [f"## {_plain(texts.title)}", _texts(texts)]
    parts += [_plain(note) for note in page.sentences]
    if page.verdicts:
        body = [text.verdict(verdict) for verdict in page.verdicts]
        parts += ["## Paired comparisons", *filter(None, [page.family]), _texts(Texts("", text.VERDICT, body))]
    if page.others:
        parts += ["## Published numbers, not measured here: not comparable", _published(page.others)]
    for texts in page.appendix:
        parts += [f"## {_plain(texts.title)}", *filter(None, [_plain(texts.caption)]), _texts(texts)]
    return "\n\n".join(parts) + "\n"


def _means(table: Table) -> str:
    header = ["budget", "method", *(["when"] if table.has_whens else [])]
    for column in table.columns:
        n = max((row.cells[column].n for row in table.rows if column in row.cells), default=0)
        header.append(f"{table.head(column)} (n = {n})")
    body = []
    for budget, rows in table.budgets.items():
        ranked = {column: table.ranks(column, rows) for column in table.columns}
        for place, row in enumerate(rows):
            cells = [_cell(row.cells.get(column), ranks.get(place)) for column, ranks in ranked.items()]
            when = [row.when] if table.has_whens else []
            body.append([text.budget(budget), _plain(table.label(row)), *when, *cells])
    return _table(map(_plain, header), body)


def _texts(texts: Texts) -> str:
    return _table(map(_plain, texts.header), (map(_plain, row) for row in texts.body))


def _cell(cell: Cell | None, rank: int | None) -> str:
    if cell is None:
        return text.NONE
    mean = text.mean(cell)
    mean = {1: f"**{mean}**", 2: f"<u>{mean}</u>"}.get(rank or 0, mean)
    paper = f"({compared})" if (compared := text.compared(cell)) else ""
    return " ".join(filter(None, [mean, text.bounds(cell.interval, cell.digits), text.partial(cell), _plain(paper)]))


def _published(rows: Sequence[Published]) -> str:
    """Return a table with a row per model, method and budget, and a column per published column."""
    found = []
    noted: dict[str, dict[str, None]] = {}
    for row in rows:
        budget = text.NONE if row.budget is None and row.method != METHODS["full"] else text.budget(row.budget)
        found.append(((row.model or "not named", budget, row.method, row.source), row.column, f"{row.value:g}"))
        if row.note:
            noted.setdefault(row.note, {})[row.method] = None
    columns, body = text.pivoted(found)
    shown = _texts(Texts("", ["model", "budget", "method", "source", *columns], body))
    notes = (f"- {_plain(', '.join(methods))}: {_plain(note)}" for note, methods in noted.items())
    return "\n".join([shown, "", *notes])


def _table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    heads = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body))


def _plain(text: str) -> str:
    """Escape the Markdown in a text and put it on one line."""
    for character in "\\|*_`<>[]#$~&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
