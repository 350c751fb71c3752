"""Show tables in the terminal at the end of a run, with the figures of its evaluations."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rich.table import Table as Printed
from rich.text import Text

from compresskv.errors import UserError
from evals.console import plain, screen
from evals.results.means import groups_of
from evals.results.record import Record
from evals.results.shows import hook, sound
from evals.results.tails import tails
from evals.tables import text
from evals.tables.printed import show_figures, show_texts
from evals.tables.table import FIDELITY, Cell, Row, Table

WIDE = 12
"""Maximum number of columns of a table. Tables with more are transposed: columns become rows, settings columns."""

ACROSS = 5
"""Number of settings next to each other in a transposed table."""

INTERVAL = "95 % interval"

SIZES = {
    "realised_budget": ("kept/layer/head", 1, 1.0),
    "cache_bytes": ("cache MB", 2, 1e6),
    "total_cache_bytes": ("with sliding layers", 2, 1e6),
}
"""Sizes of a setting by summary field: column, digits and unit."""


def show(records: Sequence[Record]) -> list[Path]:
    """Print the tables of every model and evaluation, and return the paths of the figures."""
    figures: list[Path] = []
    for of_evaluation in groups_of([sound(record)[0] for record in records]):
        kind = of_evaluation[0].kind
        tables = hook(kind, "tables")(of_evaluation)
        texts = hook(kind, "texts", lambda records: [])(of_evaluation)
        for table in texts:
            show_texts(table)
        scores = [table for table in tables if table.metric not in FIDELITY and not texts]
        for table in scores:
            for printed in _turned(table) if len(table.columns) > WIDE else [_upright(table)]:
                screen().print(printed)
        if scores and (draw := hook(kind, "figure")):
            try:
                figures += _drawn(draw, scores[0], of_evaluation)
            except UserError as error:  # such as a read-only tree
                screen().print(f"no figure: {error}", soft_wrap=True, markup=False)
        if fidelity := [table for table in tables if table.metric in FIDELITY]:
            screen().print(_fidelity(fidelity))
        for table in hook(kind, "appendix", tails)(of_evaluation):
            show_texts(table)
    show_figures(figures)
    return figures


def _drawn(draw: object, table: Table, records: Sequence[Record]) -> list[Path]:
    """Save the figure of these records. Other settings or samples give another file name."""
    from evals.tables.figures import save

    assert callable(draw)
    covered = sorted(f"{record.path} {' '.join(line['id'] for line in record.covered)}" for record in records)
    digest = hashlib.sha256("\n".join(covered).encode()).hexdigest()[:8]
    stem = records[0].runs.parent / "figures" / f"{table.eval}-{table.model}-{digest}"
    return save(draw(table), stem, (".png", ".svg"))


def _title(table: Table) -> str:
    return f"{table.model} · {table.eval}"


def _upright(table: Table) -> Printed:
    """Return a table with a row per setting: the average with its interval, the other columns, and the tokens kept."""
    others = [column for column in table.columns if column != table.overall]
    sizes = [field for field in SIZES if any(field in row.sizes for row in table.rows)]
    printed = Printed(title=plain(_title(table)), caption=_caption(table, table.rows))
    printed.add_column("setting", no_wrap=True)
    if table.has_whens:
        printed.add_column("when", min_width=max(len(row.when) for row in table.rows))
    for column in (table.metric.field, INTERVAL, *map(table.head, others), "n", *(SIZES[field][0] for field in sizes)):
        printed.add_column(plain(column), justify="right")
    for row in table.rows:
        when = [row.when] if table.has_whens else []
        name = replace(row.name, when="prompt") if when else row.name
        means = (_mean(row.cells[column]) if column in row.cells else "" for column in others)
        mean, interval, n = _overall(row.cells.get(table.overall), 1, 2)
        printed.add_row(*map(plain, [str(name), *when, mean, interval, *means, n, *(_size(row, of) for of in sizes)]))
    return printed


def _mean(cell: Cell) -> str:
    return text.number(cell.mean, 1) + ("†" if cell.partial else "")


def _overall(cell: Cell | None, digits: int, of_bounds: int) -> tuple[str, str, str]:
    """Return the mean, its interval and the number of samples."""
    if cell is None:
        return text.NONE, text.NONE, ""
    interval = text.bounds(cell.interval, of_bounds, "{} – {}") or text.NONE
    return text.number(cell.mean, digits), interval, text.partial(cell) or str(cell.n)


def _size(row: Row, field: str) -> str:
    _, digits, unit = SIZES[field]
    return text.number(row.sizes.get(field), digits, unit)


def _turned(table: Table) -> Iterator[Printed]:
    """Yield tables with settings as columns, at most `ACROSS` per table, and intervals next to the means."""
    for start in range(0, len(table.rows), ACROSS):
        rows = table.rows[start : start + ACROSS]
        printed = Printed(title=plain(_title(table)), caption=_caption(table, rows))
        printed.add_column("")
        for head in ("n", *(str(row.name) for row in rows)):
            printed.add_column(plain(head), justify="right")
        for column in table.columns:
            cells = [row.cells.get(column) for row in rows]
            n = max((cell.n for cell in cells if cell), default=0)
            means = (
                " ".join(filter(None, (text.mean(cell), text.bounds(cell.interval, 2, "({}–{})"), text.partial(cell))))
                if cell
                else ""
                for cell in cells
            )
            printed.add_row(*map(plain, (table.head(column), str(n), *means)))
        printed.add_section()
        for field, (title, _, _) in SIZES.items():
            if any(field in row.sizes for row in rows):
                printed.add_row(title, "", *(_size(row, field) for row in rows))
        yield printed


def _caption(table: Table, rows: Sequence[Row]) -> Text | None:
    partial = any(cell.partial for row in rows for cell in row.cells.values())
    notes = [*filter(None, [table.caption]), *([text.PARTIAL] if partial else [])]
    return plain("; ".join(notes)) if notes else None


def _fidelity(tables: Sequence[Table]) -> Printed:
    """Return a table with a row per setting: mean and 95 % interval of each metric over the samples of all tasks."""
    title = f"{_title(tables[0])} · fidelity to the full cache"
    printed = Printed(title=plain(title), caption="kl and reference_nll in nats per token, agreement from 0 to 1")
    printed.add_column("setting", no_wrap=True)
    for table in tables:
        for column in (table.metric.field, INTERVAL, "n"):
            printed.add_column(column, justify="right")
    for place, row in enumerate(tables[0].rows):
        cells = (table.rows[place].cells.get(table.overall) for table in tables)
        printed.add_row(plain(str(row.name)), *chain.from_iterable(_overall(cell, 3, 4) for cell in cells))
    return printed
