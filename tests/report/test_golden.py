"""The output of every renderer equals the files in golden/, which `python -m tests.report.test_golden` writes."""

from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from evals.report import csv, terminal
from evals.report.latex import appendix, latex
from evals.report.markdown import markdown
from evals.report.page import Page
from evals.results.published import Published
from evals.tables.compare import Question, verdicts
from evals.tables.methods import Name
from evals.tables.table import Cell, Row, Table, Texts
from tests.support.tables import cell

GOLDEN = Path(__file__).with_name("golden")


def page() -> Page:
    """A table with a level, ranks, a partial, a published and a missing cell, and a marked protocol."""

    def row(method: str, budget: int | None, start: float, **fields) -> Row:
        first = cell([start + n for n in range(12)], **fields)
        second = cell([start + 2 * n for n in range(12)])
        whole = Cell({"first": first.strata["task"], "second": second.strata["task"]}, 24, 24, tasks=2)
        sizes = {"realised_budget": float(budget or 1000), "cache_bytes": 1000.0 * (budget or 1000)}
        return Row(Name(method, budget), {"one_&": first, "two": second, "average": whole}, sizes=sizes)

    compress = row("CompressKV", 64, 60, published=58.0)
    snap = row("SnapKV", 64, 40, published=47.5, apart="protocol=corrected", source="second-hand")
    part = Row(Name("CAKE", 64, "released", "window=16", True), {"one_&": cell([10.0, 20.0, 30.0], of=12)})
    rows = [row("FullKV", None, 70), compress, snap, part]
    table = Table("tiny_model", "niah", ["one_&", "two", "average"], rows, heads={"two": "Two"}, caption="A caption.")
    texts = Texts("Texts of <tiny>", ["setting", "MB"], [["FullKV", "1.00"], ["a|b", "–"]])
    others = [Published("item", "", "CompressKV", 128, "two", 12.5, "share", "paper v1 text", "approximate")]
    question = Question()
    found = verdicts(question, table)
    return Page(
        name="item",
        title="A page",
        tables=[table],
        texts=[texts],
        notes=["A note_."],
        verdicts=found,
        others=others,
        family=question.family([table.metric]),
    )


def printed() -> str:
    """What the terminal shows of the table, upright and turned, and of the texts."""
    console = Console(file=StringIO(), width=120, force_terminal=False)
    (table,) = page().tables
    with mock.patch.object(terminal, "screen", return_value=console):
        for each in (terminal._upright(table), *terminal._turned(table)):
            console.print(each)
        terminal.show_texts(page().texts[0])
    return console.file.getvalue()


RENDERED = {
    "terminal.txt": printed,
    "table.md": lambda: markdown(page()),
    "table.tex": lambda: latex(page()),
    "table-appendix.tex": lambda: appendix(page()),
    "table.csv": lambda: csv.csv_text(csv.means(page().tables)),
    "comparisons.csv": lambda: csv.csv_text(csv.comparisons(page().verdicts)),
}


@pytest.mark.parametrize("name", RENDERED)
def test_every_renderer_writes_what_it_wrote(name):
    assert RENDERED[name]() == (GOLDEN / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, render in RENDERED.items():
        (GOLDEN / name).write_text(render(), encoding="utf-8")
