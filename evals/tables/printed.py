"""Print tables of text in the terminal, and the paths of figures."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as Printed

from evals.console import plain, screen
from evals.tables.table import Texts


def show_texts(texts: Texts) -> None:
    """Print a table of texts."""
    table = Printed(title=plain(texts.title), caption=plain(texts.caption) if texts.caption else None)
    for place, column in enumerate(texts.header):
        table.add_column(plain(column), justify="right" if place else "left", no_wrap=not place)
    for row in texts.body:
        table.add_row(*map(plain, row))
    screen().print(table)


def show_figures(paths: Sequence[Path]) -> None:
    for path in paths:
        screen().print(f"figure: {path}", soft_wrap=True, markup=False)
