"""An item as LaTeX tables; they need the packages booktabs and graphicx."""

from collections.abc import Sequence

from evals.report.cells import Cell, Grid, ranks
from evals.report.page import (
    VERDICT_COLUMNS,
    Page,
    bounds,
    budget_text,
    columns,
    heading,
    mean_text,
    notes,
    paper,
    partial,
    verdict_texts,
)

ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"\textdagger{}",
    "–": "--",
    "−": "$-$",
    "·": r"\textperiodcentered{}",
    "…": r"\ldots{}",
    "[": "{[}",  # after a line break, a bracket would be its argument
    "]": "{]}",
}


def escape(text: str) -> str:
    """Text that is no markup, on one line."""
    return " ".join("".join(ESCAPED.get(character, character) for character in text).split())


def latex(page: Page) -> str:
    """A table for each model, and one of the paired comparisons."""
    tables = [_table(f"{page.title}: {heading(grid)}.", notes(page), *_grid(grid)) for grid in page.grids]
    for plain in page.plain:
        rows = [[escape(text) for text in row] for row in plain.body]
        header = [escape(name) for name in plain.header]
        tables.append(_table(f"{page.title}: {plain.title}.", [], "l" * len(header), header, [rows]))
    if page.verdicts:
        body = [[escape(text) for text in verdict_texts(verdict)] for verdict in page.verdicts]
        header = [escape(name) for name in VERDICT_COLUMNS]
        tables.append(_table(f"{page.title}: paired comparisons.", [], "llllrlrrlr", header, [body]))
    return "% \\usepackage{booktabs,graphicx}\n" + "\n".join(tables)


Body = Sequence[Sequence[Sequence[str]]]
"""Groups of rows of cells."""


def _grid(grid: Grid) -> tuple[str, list[str], Body]:
    """Alignment, header and body of a model's table."""
    header = ["budget", "method", *(stacked(escape(name), escape(n)) for name, n in columns(grid).values())]
    groups = []
    for budget, rows in grid.budgets.items():
        ranked = {column: ranks(column, rows, grid.metric) for column in grid.columns}
        group = []
        for place, row in enumerate(rows):
            cells = [
                _cell(row.cells[column], ranked[column].get(place)) if column in row.cells else "--"
                for column in grid.columns
            ]
            group.append([budget_text(budget) if place == 0 else "", escape(row.label), *cells])
        groups.append(group)
    return "ll" + "r" * len(grid.columns), header, groups


def _cell(cell: Cell, rank: int | None) -> str:
    """The mean, and below it the rest, which is wider."""
    mean = mean_text(cell)
    mean = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(rank or 0, mean)
    return stacked(mean, *map(escape, filter(None, (bounds(cell.interval, cell.digits), partial(cell), paper(cell)))))


def stacked(first: str, *below: str) -> str:
    """Lines above each other in a cell, small but for the first."""
    lines = r" \\ ".join([first, *(rf"\scriptsize {line}" for line in below)])
    return rf"\shortstack[r]{{{lines}}}" if below else first


def _table(caption: str, notes: Sequence[str], alignment: str, header: Sequence[str], groups: Body) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", r"\resizebox{\textwidth}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", " & ".join(header) + r" \\"]
    for group in groups:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in group)]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\footnotesize {escape(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])
