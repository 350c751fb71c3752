"""Write a page as LaTeX tables: means for the main text, intervals and sample counts for the appendix.

The tables need the packages booktabs, graphicx and rotating. They do not use pandas' `to_latex`, because it cannot
split or rotate tables that are too large for a page. Tables are never scaled.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Literal

from compresskv.budget import Budget
from compresskv.errors import UserError
from evals.report.page import Page
from evals.tables import text
from evals.tables.compare import Verdict
from evals.tables.statistics import ALPHA
from evals.tables.table import Cell, Row, Table, Texts

Columns = Literal["tasks", "groups"]
"""Columns of a table that has groups: its tasks, or the means of groups of tasks. Both include the average."""

PACKAGES = "% \\usepackage{booktabs,graphicx,rotating}, and a text of 5.5 inches or more\n"

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
    "[": "{[}",  # after a line break, LaTeX would read a bracket as its argument
    "]": "{]}",
}

DAGGER = r"$^\dagger$"

UPRIGHT, TURNED = (97, 48), (137, 28)
"""Characters per line and rows of a \\scriptsize table that fit on a page with a text width of at least 5.5 inches."""

NARROW = 45
"""Maximum width in characters of a table that is set in \\small, with columns of natural width."""

MANY = 8
"""Maximum number of columns with horizontal heads; with more columns, the heads are rotated."""


def escape(name: str) -> str:
    """Escape the LaTeX markup in a text and put it on one line."""
    return " ".join("".join(ESCAPED.get(character, character) for character in name).split())


def latex(page: Page, columns: Columns = "tasks") -> str:
    """Return the tables of a paper: one for each model and metric, with methods as rows, in one block per budget.

    Means over part of the samples have a dagger and are never marked as best or second. Raises `UserError` for
    `columns="groups"` if no table has groups.
    """
    if columns == "groups" and not any(table.sums for table in page.tables):
        raise UserError("columns", "leave it out", value=columns, why="the columns of these tables have no groups")
    tables = [PACKAGES]
    for place, table in enumerate(page.tables):
        caption = [f"{escape(text.heading(table))}."]
        if any(_ranks(table, column, rows) for rows in table.budgets.values() for column in table.columns):
            caption.append("Within a budget, the best is bold and the second underlined.")
        if any(cell.partial for cell in table.cells):
            caption.append(f"{DAGGER} Over part of the samples, and not ranked.")
        caption.append(rf"Intervals and numbers of samples: Table~\ref{{{_label(page, place)}-intervals}}.")
        tables += _floats(" ".join(caption), _label(page, place), _means(table, _columns(table, columns)))
    for place, texts in enumerate(page.texts, len(page.tables)):
        tables += _of_texts(texts, _label(page, place))
    return "\n".join(tables)


def _of_texts(texts: Texts, label: str) -> Iterator[str]:
    body = [[escape(cell) for cell in row] for row in texts.body]
    tabular = Tabular([escape(name) for name in texts.header], {"": body}, "l" * len(texts.header))
    caption = f"{texts.title}. {texts.caption}".strip()
    return _floats(escape(caption), label, tabular)


def appendix(page: Page, columns: Columns = "tasks") -> str:
    """Return the tables of an appendix: intervals and sample counts, paired comparisons, and notes."""
    tables = [PACKAGES]
    for place, table in enumerate(page.tables):
        label = _label(page, place)
        caption = rf"{escape(text.heading(table))}: 95\,\% intervals of the means in Table~\ref{{{label}}}."
        tables += _floats(caption, f"{label}-intervals", _intervals(table, _columns(table, columns)))
    tables += comparisons(page.verdicts, page.family, f"tab:{page.name}-comparisons")
    for place, texts in enumerate(page.appendix):
        tables += _of_texts(texts, f"tab:{page.name}-appendix-{place + 1}")
    if said := [rf"\item {escape(note)}" for note in page.sentences]:
        tables += [r"\begin{itemize}", *said, r"\end{itemize}", ""]
    return "\n".join(tables)


def comparisons(verdicts: Sequence[Verdict], family: str, label: str) -> list[str]:
    """Return the paired comparisons as floats, one per model, evaluation and metric. Shown differences are bold."""
    of_models: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        of_models.setdefault((verdict.model, verdict.eval, verdict.metric), []).append(verdict)
    floats: list[str] = []
    for place, ((model, evaluation, metric), of_model) in enumerate(of_models.items()):
        title = f"{model}, {text.title_of(evaluation)}: paired comparisons by {metric}."
        caption = rf"{escape(title)} {escape(family)} Bold: $p < {ALPHA}$."
        floats += _floats(caption, f"{label}{f'-{place + 1}' if place else ''}", _compared(of_model))
    return floats


def _label(page: Page, place: int) -> str:
    """Return the LaTeX \\label of the table at index `place`."""
    return f"tab:{page.name}" + (f"-{place + 1}" if place else "")


@dataclass(frozen=True)
class Tabular:
    """The parts of a table as LaTeX; the first column is text.

    `blocks`: rows by the line above them. `spans`: the texts above the head. `alignment`: one letter per column.
    """

    header: Sequence[str]
    blocks: Mapping[str, Sequence[Sequence[str]]]
    alignment: str
    spans: Sequence[str] = ()


def _columns(table: Table, columns: Columns) -> list[str]:
    """Return the columns to show. For a table with groups: the tasks or the groups, and the average."""
    if not table.sums:
        return list(table.columns)
    return [
        column for column in table.columns if column == table.overall or (column in table.sums) == (columns == "groups")
    ]


def _digits(table: Table) -> int:
    """Return the number of decimals, one less than in Markdown and CSV: one for a score."""
    return max(1, table.metric.digits - 1)


def _ranks(table: Table, column: str, rows: Sequence[Row]) -> dict[int, int]:
    return table.ranks(column, rows, _digits(table))


def _means(table: Table, columns: Sequence[str]) -> Tabular:
    """Return a table of means. If all means of a row are partial, only its name has a dagger."""
    blocks: dict[str, list[list[str]]] = {}
    for budget, rows in table.budgets.items():
        ranks = {column: _ranks(table, column, rows) for column in columns}
        body = blocks[_block(budget)] = []
        for place, row in enumerate(rows):
            cells = {column: row.cells.get(column) for column in columns}
            dagger = DAGGER if all(cell.partial for cell in cells.values() if cell) else ""
            name, *when = _heads(table, row)
            means = (_mean(cell, _digits(table), ranks[of].get(place, 0), not dagger) for of, cell in cells.items())
            body.append([name + dagger, *when, *means])
    header = [escape(_name(table, column)) for column in columns]
    if len(columns) > MANY:
        header = [rf"\rotatebox{{90}}{{{name}}}" for name in header]
    spans = [table.spans.get(column, "") for column in columns]
    first = _first(table)
    spans = [""] * (len(first) - 1) + spans if any(spans) else []
    return Tabular([*first, *header], blocks, "l" * len(first) + "r" * len(columns), spans)


def _first(table: Table) -> list[str]:
    """Return the heads of the columns that name a row: its label, and its time of eviction if rows have different
    times."""
    return ["method", *(["when"] if table.has_whens else [])]


def _heads(table: Table, row: Row) -> list[str]:
    return [escape(table.label(row)), *([escape(row.when)] if table.has_whens else [])]


def _mean(cell: Cell | None, digits: int, rank: int, marked: bool) -> str:
    """Return a mean; `marked`: with a dagger if it is partial."""
    if cell is None:
        return "--"
    mean = text.number(cell.mean, digits).replace("-", "$-$")
    mean = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(rank, mean)
    return mean + (DAGGER if cell.partial and marked else "")


def _intervals(table: Table, columns: Sequence[str]) -> Tabular:
    """Return a table of the intervals. A head shows its most common sample count; other cells show their own."""
    header, usual = _first(table), {}
    alignment = "l" * len(header) + "r" * len(columns)
    for column in columns:
        counted = Counter(_samples(row.cells[column]) for row in table.rows if column in row.cells)
        usual[column] = counted.most_common(1)[0][0] if counted else ""
        header.append(rf"\shortstack[r]{{{escape(_name(table, column))} \\ {escape(usual[column])}}}")
    blocks = {}
    for budget, rows in table.budgets.items():
        blocks[_block(budget)] = [
            [*_heads(table, row), *(_interval(row.cells.get(column), usual[column]) for column in columns)]
            for row in rows
        ]
    return Tabular(header, blocks, alignment)


def _interval(cell: Cell | None, usual: str) -> str:
    if cell is None:
        return "--"
    samples = _samples(cell)
    return escape(f"{text.bounds(cell.interval, cell.digits) or text.NONE} {samples if samples != usual else ''}")


def _samples(cell: Cell) -> str:
    return text.partial(cell) or f"n = {cell.n}"


def _compared(verdicts: Sequence[Verdict]) -> Tabular:
    of = ["of"] if len({verdict.column for verdict in verdicts}) > 1 else []
    numbers = ("difference", r"95\,\% interval", "$p$", "$p$ (eq.)", "$n$", "$n$ needed")
    blocks: dict[str, list[list[str]]] = {}
    several = len({verdict.budget for verdict in verdicts}) > 1 or verdicts[0].budget is not None
    for verdict in verdicts:
        above = f"budget = {escape(text.budget(verdict.budget))}" if several else ""
        texts = [escape(number) for number in text.numbers(verdict)]
        for place, p in ((2, verdict.p), (3, verdict.equivalence)):
            texts[place] = rf"\textbf{{{texts[place]}}}" if p is not None and p < ALPHA else texts[place]
        name = f"{escape(verdict.second)} $-$ {escape(verdict.first)}"
        blocks.setdefault(above, []).append([name, *(escape(verdict.column) for _ in of), *texts])
    return Tabular(["comparison", *of, *numbers], blocks, "l" * (1 + len(of)) + "r" * len(numbers))


def _block(budget: Budget | None) -> str:
    """Return the line above the rows of a budget; "" for the full cache, as in the paper."""
    return "" if budget is None else f"budget = {escape(str(budget))}"


def _name(table: Table, column: str) -> str:
    return "average" if column == table.average else table.head(column)


def _floats(caption: str, label: str, table: Tabular) -> Iterator[str]:
    """Yield the table as one float, or as several numbered floats if it does not fit on a page."""
    every_row = [table.header, *chain.from_iterable(table.blocks.values())]
    widths = [max(map(_width, cells)) for cells in zip(*every_row, strict=True)]
    turned = UPRIGHT[0] < _total(widths) <= TURNED[0]
    width, height = TURNED if turned else UPRIGHT
    parts = [rows for columns in _panels(table, widths, width) for rows in _pages(columns, height)]
    small = _total(widths) <= NARROW
    for number, part in enumerate(parts, 1):
        of = f" (Part {number} of {len(parts)}.)" if len(parts) > 1 else ""
        yield _float(caption + of, label if number == 1 else f"{label}-part{number}", part, turned, small)


def _width(tex: str) -> float:
    """Estimate the width of a cell in characters; punctuation counts less, and a rotated head as two."""
    if tex.startswith(r"\rotatebox"):
        return 2
    shown = re.sub(r"\\(text)?dagger", "x", tex)
    lines = [re.sub(r"\\[A-Za-z]+(\[\w\])?|[{}$^\\]", "", line) for line in shown.split(r"\\")]
    bold = 1.15 if r"\textbf" in tex else 1
    return max(len(line.strip()) - 0.4 * sum(map(line.count, ".,[]() ")) for line in lines) * bold


def _total(widths: Sequence[float]) -> float:
    """Return the width of columns with the gaps between them. `_float` uses smaller gaps for many columns."""
    return sum(widths) + len(widths) * (0.5 if len(widths) > MANY + 1 else 1)


def _panels(table: Tabular, widths: Sequence[float], most: float) -> Iterator[Tabular]:
    """Split the table into parts whose columns fit the width `most`. Each part repeats the first column."""
    columns = range(1, len(widths))
    for count in columns:
        each = -(-len(columns) // count)
        places = [[0, *columns[start : start + each]] for start in range(0, len(columns), each)]
        if all(_total([widths[place] for place in of_panel]) <= most for of_panel in places):
            break
    for of_panel in places:
        blocks = {name: [[row[place] for place in of_panel] for row in rows] for name, rows in table.blocks.items()}
        spans = [table.spans[place - 1] for place in of_panel[1:]] if table.spans else ()
        header = [table.header[place] for place in of_panel]
        yield Tabular(header, blocks, "".join(table.alignment[place] for place in of_panel), spans)


def _pages(table: Tabular, most: int) -> Iterator[Tabular]:
    """Split the table into parts of at most `most` rows, between blocks if possible."""
    page: dict[str, Sequence[Sequence[str]]] = {}
    for name, rows in table.blocks.items():
        taken = sum(len(of_block) + 1 for of_block in page.values())
        if page and taken + len(rows) + 1 > most:
            yield replace(table, blocks=page)
            page = {}
        *whole, last = [rows[start : start + most] for start in range(0, len(rows), most)]
        for part in whole:
            yield replace(table, blocks={name: part})
        page[name] = last
    yield replace(table, blocks=page)


def _float(caption: str, label: str, table: Tabular, turned: bool, small: bool) -> str:
    """Return one float. In two-column documents, wide tables span both columns."""
    kind = ("sidewaystable" if turned else "table") + ("" if small else "*")
    columns = len(table.header)
    wide = not small and columns > MANY + 1
    tabular, width, fill = ("tabular*", r"{\linewidth}", r"\extracolsep{\fill}") if wide else ("tabular", "", "")
    blocks: list[str] = []
    for name, rows in table.blocks.items():
        above = rf"\multicolumn{{{columns}}}{{@{{}}c@{{}}}}{{{name}}} \\ \midrule"
        blocks += [r"\midrule", *([above] if name else []), *(" & ".join(row) + r" \\" for row in rows)]
    lines = [
        *(rf"\begin{{{kind}}}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"),
        r"\small" if small else r"\scriptsize",
        rf"\setlength{{\tabcolsep}}{{{4 if small else 1 if wide else 2}pt}}",
        rf"\begin{{{tabular}}}{width}{{@{{{fill}}}{table.alignment}@{{}}}}",
        *(r"\toprule", *_spans(table.spans), " & ".join(table.header) + r" \\", *blocks, r"\bottomrule"),
        *(rf"\end{{{tabular}}}", rf"\end{{{kind}}}", ""),
    ]
    return "\n".join(lines)


def _spans(spans: Sequence[str]) -> Iterator[str]:
    """Yield a line above the head, with each name over its columns and a rule below each name."""
    cells, rules, place = [""], [], 2
    for name, group in groupby(spans):
        count = len(list(group))
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{\tiny {escape(name)}}}" if name else " & " * (count - 1))
        if name:
            rules.append(rf"\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    if rules:
        yield " & ".join(cells) + r" \\"
        yield "".join(rules)
