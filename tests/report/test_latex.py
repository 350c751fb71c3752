"""Every LaTeX artefact compiles, with any names of models and methods."""

import re
import shutil
import subprocess

import pytest

from evals.report.latex import appendix, escape, latex
from evals.report.page import Page
from evals.tables.compare import Verdict
from evals.tables.methods import Name
from evals.tables.table import SCORE, Cell, Metric, Row, Table, Texts
from tests.support.refusals import refused
from tests.support.tables import table

BASE = {
    "booktabs": r"\newcommand{\toprule}{\hline}\newcommand{\midrule}{\hline}\newcommand{\bottomrule}{\hline}"
    r"\def\cmidrule(#1)#2{\cline{#2}}",
    "rotating": r"\newenvironment{sidewaystable*}{\begin{table*}}{\end{table*}}",
}
"""The commands of packages that tables use, for installations with only LaTeX's base."""

METHODS = ["FullKV", "StreamingLLM", "SnapKV", "PyramidKV", "CAKE", "CompressKV"]
NAMES = r"a_b % c & d # e $ f {g} h~i ^j \k [l] <m> | n † – − · … “o” é"


@pytest.fixture
def compiled(tmp_path):
    """A function that compiles tables, and returns what LaTeX wrote to its log."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")

    def run(tables: str) -> str:
        for name, commands in BASE.items():
            if not subprocess.run(["kpsewhich", f"{name}.sty"], capture_output=True).stdout:
                (tmp_path / f"{name}.sty").write_text(f"\\ProvidesPackage{{{name}}}\n{commands}\n")
        preamble = "\\documentclass{article}\n\\usepackage{booktabs,graphicx,rotating}\n"
        preamble += "\\setlength{\\textwidth}{5.5in}\n\\begin{document}\n"
        (tmp_path / "tables.tex").write_text(preamble + tables + "\\end{document}\n")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"]
        for _ in range(2):  # the second time, tables refer to each other
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "tables.pdf").stat().st_size > 1000
        return (tmp_path / "tables.log").read_text(errors="replace")

    return run


def page(name: str) -> Page:
    """A page with all parts, all named `name`: partial, published and compared cells, notes, plain tables."""
    whole = Cell({"needle": {("a", ""): 10.0, ("b", ""): 90.0}}, 2, 2, published=43.76, apart=name)
    part = Cell({"needle": {("a", ""): 10.0}}, 2, 1, published=20.0)
    rows = [
        Row(Name(name), {name: whole}),
        Row(Name(name, 64, "released", name, True), {name: whole, "average": part}),
        Row(Name("CompressKV", 64, "released", "", True), {name: part, "average": whole}),
    ]
    table = Table(name, "niah", [name, "average"], rows)
    verdict = Verdict(name, "niah", 64, name, "CompressKV", -3.0, (-5.0, -1.0), 0.01, 20, None, column=name)
    texts = Texts(name, [name, "b"], [[name, "c"], ["d", name]])
    return Page(name="item", title=name, tables=[table], verdicts=[verdict], notes=[name], texts=[texts])


def test_every_part_of_a_page_compiles_with_any_name(compiled):
    log = compiled(latex(page(NAMES)) + appendix(page(NAMES)))
    assert "Missing character" not in log
    assert "undefined" not in log


SPECIAL = {character: f"\\{character}" for character in "_%&#${}"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


@pytest.mark.parametrize(("character", "written"), SPECIAL.items())
def test_special_characters_stand_for_themselves(character, written):
    assert escape(f"a{character}b") == f"a{written}b"
    table = latex(page(f"qwen{character}2"))
    assert f"qwen{written}2" in table
    assert f"qwen{character}2" not in table.replace(written, "")


KINDS = {f"task {place}": f"kind {place // 3}" for place in range(16)}
"""Sixteen tasks of six kinds."""


def wide(metric: Metric = SCORE, partial: frozenset[str] = frozenset(), methods=METHODS[1:]) -> Page:
    """A page with many tasks in several groups at four budgets; methods in `partial` lack samples."""

    def row(method: str, budget: int | None, place: int) -> Row:
        strata = {task: {(str(n), ""): 10.0 * place + n for n in range(3)} for task in KINDS}
        counted = 2 if method in partial else 3
        of_column = {task: [task] for task in KINDS} | {"average": list(KINDS)}
        of_column |= {kind: [task for task in KINDS if KINDS[task] == kind] for kind in KINDS.values()}
        cells = {
            column: Cell({task: strata[task] for task in of}, 3 * len(of), counted * len(of), digits=metric.digits)
            for column, of in of_column.items()
        }
        return Row(Name(method, budget), cells)

    rows = [row("FullKV", None, 9)]
    rows += [row(name, budget, place) for budget in (2048, 512, 128) for place, name in enumerate(methods)]
    kinds = list(dict.fromkeys(KINDS.values()))
    columns = [*KINDS, *kinds, "average"]
    return Page(
        name="item", title="Wide", tables=[Table("tiny", "wide", columns, rows, metric, spans=KINDS, sums=kinds)]
    )


def tabulars(tex: str) -> list[list[list[str]]]:
    """The cells of every table by row, without cells that span all columns."""
    found = []
    for inner in re.findall(r"\\begin\{tabular\*?\}.*?\n(.*?)\\end\{tabular", tex, re.DOTALL):
        rows = [line.removesuffix(r" \\").split(" & ") for line in inner.splitlines() if " & " in line]
        found.append([row for row in rows if r"\multicolumn" not in row[1]])
    return found


@pytest.mark.parametrize(("columns", "number"), [("tasks", 16), ("groups", 6)])
def test_the_papers_layout(columns, number):
    tex = latex(wide(), columns)
    (rows,) = tabulars(tex)
    assert {len(row) for row in rows} == {1 + number + 1}
    assert [row[0] for row in rows] == ["method", "FullKV", *METHODS[1:] * 3]
    assert re.findall(r"budget = (\d+)", tex) == ["2048", "512", "128"]
    assert all(re.fullmatch(r"\d+\.\d", cell) for cell in rows[1][1:])
    assert r"\resizebox" not in tex
    # The best and second of every budget, in every column.
    best, second = METHODS[-1], METHODS[-2]
    for row in rows[1:]:
        for cell in row[1:]:
            assert cell.startswith(r"\textbf") == (row[0] == best)
            assert cell.startswith(r"\underline") == (row[0] == second)


def test_the_appendix_has_every_interval_once_and_refers_to_the_means():
    page = wide()
    main, more = latex(page), appendix(page)
    widths = [len(rows[0]) - 1 for rows in tabulars(more)]
    assert sum(widths) == 17
    assert {len(rows) for rows in tabulars(more)} == {1 + len(page.tables[0].rows)}
    labels = re.findall(r"\\label\{(.*?)\}", main + more)
    assert len(labels) == len(set(labels)) == len(re.findall(r"\\caption\{", main + more))
    assert set(re.findall(r"\\ref\{(.*?)\}", main + more)) <= set(labels)


def test_a_row_over_part_of_the_samples_is_no_best():
    (rows,) = tabulars(latex(wide(partial=frozenset([METHODS[-1]]))))
    marked = {row[0] for row in rows if r"\textbf" in "".join(row)}
    assert marked == {METHODS[-2]}
    assert {row[0] for row in rows if "dagger" in row[0]} == {METHODS[-1] + r"$^\dagger$"}
    (rows,) = tabulars(latex(wide(partial=frozenset(["FullKV", *METHODS]))))
    assert r"\textbf" not in str(rows)


def test_what_is_marked_is_what_is_shown():
    """Means that differ in a digit that is not printed share their mark."""
    close = table({"x": [50.01], "y": [49.99], "z": [20.0]})
    (shown,) = tabulars(latex(Page(name="item", title="t", tables=[close])))
    assert [row[1] for row in shown[1:]] == [r"\textbf{50.0}", r"\textbf{50.0}", r"\underline{20.0}"]


@pytest.mark.parametrize("metric", [SCORE, Metric("kl", "KL", 4, "lower")])
@pytest.mark.parametrize("columns", ["tasks", "groups"])
@pytest.mark.parametrize("methods", [METHODS[1:], [f"{name}, window 16, average pooling" for name in METHODS * 4]])
def test_tables_fit_their_page(compiled, metric, columns, methods):
    page = wide(metric, methods=methods)
    log = compiled(latex(page, columns) + appendix(page, columns))
    assert "Overfull" not in log
    assert "too large" not in log


def test_groups_are_those_of_wide():
    with refused("columns"):
        latex(page("tiny"), "groups")
