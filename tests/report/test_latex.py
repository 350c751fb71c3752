"""Every LaTeX artefact compiles, with whatever names models and methods have."""

import shutil
import subprocess

import pytest

from evals.report.cells import Cell, Grid, Row
from evals.report.latex import escape, latex
from evals.report.page import Page, Plain
from evals.report.verdicts import Verdict

RULES = r"""\ProvidesPackage{booktabs}
\newcommand{\toprule}{\hline}\newcommand{\midrule}{\hline}\newcommand{\bottomrule}{\hline}
"""
"""What of booktabs the tables use, where only LaTeX's base is installed."""

NAMES = r"a_b % c & d # e $ f {g} h~i ^j \k [l] <m> | n † – − · … “o” é"


@pytest.fixture
def compiled(tmp_path):
    """A function that compiles tables, and returns what LaTeX wrote to its log."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")

    def run(tables: str) -> str:
        if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
            (tmp_path / "booktabs.sty").write_text(RULES)
        preamble = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
        (tmp_path / "tables.tex").write_text(preamble + tables + "\\end{document}\n")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "tables.pdf").stat().st_size > 1000
        return (tmp_path / "tables.log").read_text(errors="replace")

    return run


def page(name: str) -> Page:
    """Every part that a page may have, named by `name`: partial, published and compared cells, notes, plain tables."""
    whole = Cell({"needle": {"a": 10.0, "b": 90.0}}, 2, 2, published=43.76, apart=name)
    part = Cell({"needle": {"a": 10.0}}, 2, 1, published=20.0)
    rows = [
        Row(name, None, "corrected", "", {name: whole}),
        Row(name, 64, "released", name, {name: whole, "average": part}, marked=True),
        Row("CompressKV", 64, "released", "", {name: part, "average": whole}, marked=True),
    ]
    grid = Grid(name, "niah", [name, "average"], rows)
    verdict = Verdict(name, "niah", 64, name, "CompressKV", -3.0, (-5.0, -1.0), 0.01, 20, None, column=name)
    plain = Plain(name, [name, "b"], [[name, "c"], ["d", name]])
    return Page("item", name, [grid], [verdict], [], [name], [plain])


def test_every_part_of_a_page_compiles_with_any_name(compiled):
    log = compiled(latex(page(NAMES)))
    assert "Missing character" not in log
    assert "undefined" not in log


@pytest.mark.parametrize(
    ("character", "written"),
    [
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("$", r"\$"),
        ("{", r"\{"),
        ("}", r"\}"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
        ("\\", r"\textbackslash{}"),
    ],
)
def test_special_characters_stand_for_themselves(character, written):
    assert escape(f"a{character}b") == f"a{written}b"
    table = latex(page(f"qwen{character}2"))
    assert f"qwen{written}2" in table
    assert f"qwen{character}2" not in table.replace(written, "")
