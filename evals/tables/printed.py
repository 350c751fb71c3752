"""Print tables of text in the terminal, and the paths of figures."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from rich.table import Table

from evals.console import plain, screen
from evals.tables.table import Texts


def printed(texts: Texts, left: Collection[str] = ()) -> Table:
    """Return a table of texts to print. The first column and those in `left` are aligned on the left."""
    title, caption = (plain(text) if text else None for text in (texts.title, texts.caption))
    table = Table(title=title, caption=caption)
    for place, column in enumerate(texts.header):
        justify: Literal["left", "right"] = "left" if not place or column in left else "right"
        table.add_column(plain(column), justify=justify, overflow="fold")
    for row in texts.body:
        table.add_row(*map(plain, row))
    return table


def show_texts(texts: Texts) -> None:
    """Print a table of texts."""
    screen().print(printed(texts))


def show_figures(paths: Sequence[Path]) -> None:
    for path in paths:
        screen().print(f"figure: {path}", soft_wrap=True, markup=False)
