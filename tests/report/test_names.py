"""Names of models, methods and tasks are text wherever they are shown: no formula, no command, no hidden label."""

import csv
import io

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from evals.efficiency import figure as efficiency_figure
from evals.niah import heatmap
from evals.report import concurrency
from evals.report.artefacts import write
from evals.report.csv import csv_text
from evals.report.curve import over_budget
from evals.report.figure import save
from evals.report.html.writing import page
from evals.report.latex import escape
from tests.report.page_trees import line
from tests.report.page_trees import setting as page_setting
from tests.report.trees import needles, setting

NAMES = ["a$^$b", "_x_", r"$\frac$", r"$\mathdefault{$^$", "$a$", "x\ud800", "a\x07b\x00", r"\$^$"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_any_name(tmp_path, name):
    rows = [{"setting": name, "length": length, "total_s": 1.0, "decode_ms": 1.0} for length in (1, 2)]
    rows = [row | {"cache_bytes": 1.0, "peak_bytes": 2.0} for row in rows]
    pools = [{"setting": name, "length": 1, "pool_mb": 64, "sequences": 1, "sequence_bytes": 9e6}]
    pools[0] |= {"tokens_per_s_alone": 5.0, "tokens_per_s": 5.0, "tokens_per_s_spread": [4.0, 6.0]}
    lines = [{"length": 1, "depth": 0.0, "score": 1.0}]
    assert efficiency_figure.draw(rows, name, tmp_path / "e")
    assert save(concurrency.draw(pools, name), tmp_path / "p", (".svg",))
    assert heatmap.draw([[(name, lines)]], name, tmp_path / "h")


def test_figures_show_dollars_as_dollars(tmp_path):
    figure, axis = plt.subplots()
    axis.set_title("$a$")
    axis.plot([1, 1000], [1, 1000])
    axis.set_yscale("log")
    with plt.rc_context({"svg.fonttype": "none"}):
        [path] = save(figure, tmp_path / "f", (".svg",))
    drawn = path.read_text()
    assert ">$a$</text>" in drawn
    assert r">$\mathdefault" not in drawn


def test_a_name_that_begins_with_an_underscore_has_its_place_in_the_legend(tmp_path):
    pools = [
        {"setting": name, "length": 1, "pool_mb": 64, "sequences": 1, "sequence_bytes": 9e6} for name in ("_x_", "b")
    ]
    for pool in pools:
        pool |= {"tokens_per_s_alone": 5.0, "tokens_per_s": 5.0, "tokens_per_s_spread": [4.0, 6.0]}
    figure = concurrency.draw(pools, "")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_x_", "b"]
    plt.close(figure)


def test_artefacts_of_models_of_any_name(tmp_path):
    for model in ("a$^$b", "_x_", "$x$"):
        for method in ("full", "snapkv"):
            setting(tmp_path, "fig5_niah", method, needles([50.0, 100.0]), model=model)
    paths = write("fig5_niah", tmp_path)
    assert sum(path.suffix == ".png" for path in paths) == 3
    assert escape("a$^$b") in next(path for path in paths if path.suffix == ".tex").read_text()


CELLS = ["=1+1", "@x", "+1", "-x", "-1", "\t=1", "\n=1", "＝1", "plain", "a=b", None]


def test_no_cell_of_a_csv_file_is_a_formula():
    frame = pd.DataFrame({"=name": CELLS, "number": range(-5, 6), "mixed": [-1.5, 2, None, "=x"] + [None] * 7})
    frame["flag"] = True
    header, *rows = csv.reader(io.StringIO(csv_text(frame), newline=""))
    assert header == ["'=name", "number", "mixed", "flag"]
    assert [row[0] for row in rows] == [*(f"'{cell}" for cell in CELLS[:8]), "plain", "a=b", ""]
    assert [row[1] for row in rows] == [str(number) for number in range(-5, 6)]
    assert [row[2] for row in rows][:4] == ["-1.5", "2", "", "'=x"]
    assert {row[3] for row in rows} == {"True"}
    assert len(csv_text(pd.DataFrame({"a": ["x\r=1"]})).splitlines()) == 2


def test_what_is_shown_follows_from_the_kind_of_evaluation(tmp_path):
    """As in trees of before `eval.name=longbench` was refused for another evaluation."""
    target = "evals.jsonl.config.Jsonl"
    page_setting(tmp_path, [line("1", 40, 64)], eval="longbench", task="qasper", _target_=target)
    text = page(tmp_path)
    assert '<section id="longbench"' not in text
    assert "longbench (jsonl)" in text
    needle = line("L1-D0-N0", 40, 64, length=1000, depth=0.0)
    page_setting(tmp_path / "b", [needle], eval="mine", _target_="evals.niah.config.Niah")
    assert '<section id="needles"' in page(tmp_path / "b")
    page_setting(
        tmp_path / "c", [line("1", 40, 64)], eval="mine", task="qasper", _target_="evals.longbench.config.LongBench"
    )
    assert '<section id="longbench"' in page(tmp_path / "c")


def test_legends_of_curves(tmp_path):
    setting(tmp_path, "fig5_niah", "snapkv", needles([50.0, 100.0]), model="_x_")
    from evals.report.artefacts import page_of

    [grid] = page_of("fig5_niah", tmp_path).grids
    figure = over_budget(grid)
    assert len(figure.legends[0].get_texts()) == 1
    plt.close(figure)
