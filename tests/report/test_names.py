"""Names of models, methods and tasks are shown literally: never as formulas, commands or hidden labels."""

import csv
import io

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from evals.efficiency import tables as efficiency
from evals.niah import heatmap
from evals.report.artefacts import write
from evals.report.csv import csv_text
from evals.report.figures import over_budget, save
from evals.report.html.writing import page
from evals.report.latex import escape
from tests.support.tables import table
from tests.support.trees import line, scored, setting

NAMES = ["a$^$b", "_x_", r"$\frac$", r"$\mathdefault{$^$", "$a$", "x\ud800", "a\x07b\x00", r"\$^$"]


def run_of(*names):
    """A measurement of efficiency with these methods."""
    named = [{"setting": name, "method": name, "variant": ""} for name in names]
    of_pool = {"length": 1, "pool_mb": 64, "sequences": 1, "sequence_bytes": 9e6, "tokens_per_s_alone": 5.0}
    of_pool |= {"tokens_per_s": 5.0, "tokens_per_s_spread": [4.0, 6.0]}
    rows = [{**name, "length": n, "total_s": 1.0} for name in named for n in (1, 2)]
    return {"model": names[0], "rows": rows, "concurrency": [{**name, **of_pool} for name in named]}


def test_figures_show_any_name(tmp_path):
    run = run_of(*NAMES)
    assert save(efficiency.draw(efficiency.tables(run)), tmp_path / "e", (".svg",))
    for number, name in enumerate(NAMES):  # as a name of a model, which is in titles
        assert save(heatmap.drawn([[(name, {(1, 0.0): 1.0})]], name), tmp_path / f"h{number}", (".svg",))
    assert save(efficiency.draw_pools(run["concurrency"], "".join(NAMES)), tmp_path / "p", (".svg",))


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


def test_a_name_that_begins_with_an_underscore_has_its_place_in_the_legend():
    names = ["_x_", "b"]
    curves = over_budget(table({name: [50.0] for name in names}))
    for figure in (efficiency.draw_pools(run_of(*names)["concurrency"], ""), curves):
        assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == names
        plt.close(figure)


def test_artefacts_of_models_of_any_name(tmp_path):
    for model in ("a$^$b", "_x_"):
        scored(tmp_path, {"full": [50.0, 100.0], "snapkv": [50.0, 100.0]}, model=model)
    paths = write("fig5_niah", tmp_path)
    assert sum(path.suffix == ".png" for path in paths) == 2
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


@pytest.mark.parametrize(
    ("name", "target", "section"),
    [("longbench", "jsonl.config.Jsonl", ""), ("mine", "niah.config.Niah", "needles"),
     ("mine", "longbench.config.LongBench", "longbench")],
)  # fmt: skip
def test_what_is_shown_follows_from_the_kind_of_evaluation(tmp_path, name, target, section):
    """Older trees may have `eval.name=longbench` for another evaluation."""
    lines = [line("L1-D0-N0", 40, 64, length=1000, depth=0.0)]
    setting(tmp_path, lines, eval=name, task="qasper", of_eval={"_target_": f"evals.{target}"})
    text = page(tmp_path)
    for each in ("needles", "longbench"):
        assert (f'<section id="{each}"' in text) == (each == section)
    assert ("longbench (jsonl)" in text) == (not section)
