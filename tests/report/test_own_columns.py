"""The columns of an evaluation outside the package are in every renderer."""

import csv

import pytest

from evals.cli import main
from evals.loggers.wandb import means
from evals.report import terminal
from evals.report.artefacts import page_of, write
from evals.report.html.writing import page
from evals.results import shows
from evals.results.shows import hook
from tests.support.trees import line, setting

CLASS = """
from dataclasses import dataclass
from evals.job import SampledEvaluation


@dataclass(frozen=True)
class Counting(SampledEvaluation):
    def make_tasks(self, model, protocol):
        return []
"""

TABLES = """
from evals.results.means import USUAL, add, average, cells, sampled


def tables(records, asked=USUAL):
    def cells_of(of_row, metric):
        columns = {}
        for record in of_row:
            for line in record.covered:
                add(columns, "upward" if line["up"] else "downward", record.task, record, line, metric)
        return cells(columns) | average(of_row, metric)

    return sampled(records, asked, cells_of, order=["upward", "downward"].index, heads={"upward": "Upward"})


def notes(records, tables, view):
    return ["Numbers are counted in both directions."]
"""


@pytest.fixture(params=["a package with tables.py", "a single module"])
def results(request, tmp_path, monkeypatch):
    """Results of methods on this evaluation, as written by a run of experiment=counting."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"counting{len(request.param)}"
    if request.param.startswith("a package"):
        (tmp_path / name).mkdir()
        for file, content in {"__init__": "", "config": CLASS, "tables": TABLES}.items():
            (tmp_path / name / f"{file}.py").write_text(content)
        target = f"{name}.config.Counting"
    else:
        (tmp_path / f"{name}.py").write_text(CLASS + TABLES)
        target = f"{name}.Counting"
    shows._modules.cache_clear()
    for method, gain in {"full": 30, "compresskv": 20, "snapkv": 10}.items():
        lines = [line(str(n), 40.0 + gain + n + 7 * (n % 2), up=n % 2 == 0) for n in range(8)]
        of = {"of_eval": {"_target_": target}, "of_config": {"experiment": "counting"}}
        setting(tmp_path, lines, method, eval="counting", task="numbers", **of)
    return tmp_path


def test_in_every_renderer(results, capsys):
    (table,) = page_of("counting", results).tables
    assert list(table.columns) == ["upward", "downward", "average"]
    snapkv = {column: f"{cell.mean:.2f}" for column, cell in table.rows[1].cells.items()}
    assert (str(table.rows[1].name), snapkv["upward"], snapkv["downward"]) == ("SnapKV 64", "53.00", "61.00")
    paths = {path.name: path for path in write("counting", results)}
    texts = {name: path.read_text() for name, path in paths.items() if path.suffix in (".md", ".tex", ".csv")}
    assert "| budget | method | Upward (n = 4) | downward (n = 4) | average (n = 8) |" in texts["table.md"]
    assert "Numbers are counted in both directions." in texts["table.md"]
    assert "method & Upward & downward & average" in texts["table.tex"]
    rows = list(csv.DictReader(texts["table.csv"].splitlines()))
    of_snapkv = {row["column"]: float(row["mean"]) for row in rows if row["method"] == "SnapKV"}
    assert of_snapkv == {column: float(mean) for column, mean in snapkv.items()}
    assert paths["figure-tiny.png"].stat().st_size > 1000
    shown = page(results)
    for text in ("Upward", "downward", snapkv["upward"], snapkv["downward"]):
        assert f">{text}<" in shown
    records = list(table.rows[0].records) + list(table.rows[1].records)
    terminal.show(records)
    printed = capsys.readouterr().out
    assert [name in printed for name in ("Upward", "downward", "53.0", "61.0")] == [True] * 4
    ((title, (columns, sent)),) = means(records)
    assert title == "tiny, counting"
    assert columns == ["setting", "Upward", "downward", "average"]
    assert sent[-1][:3] == ["SnapKV 64", 53.0, 61.0]


def test_its_methods_are_compared(results, capsys):
    assert main(["results", "compare", "--results", str(results)]) == 0
    assert "SnapKV − CompressKV" in capsys.readouterr().out


def test_code_inside_a_results_tree_is_never_imported(tmp_path, monkeypatch):
    """Whoever sends a tree chooses its `_target_`, which may name a file of the tree."""
    (tmp_path / "sent" / "runs").mkdir(parents=True)
    (tmp_path / "sent" / "runs" / "config.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hook("sent.runs.config.Evaluation", "FIELDS", "none") == "none"
