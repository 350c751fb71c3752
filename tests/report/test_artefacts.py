"""Tables and figures from results trees that are empty, partial or complete, with one or two models."""

from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd

from evals.niah.heatmap import heatmaps
from evals.report.__main__ import main
from evals.report.artefacts import page_of, write
from evals.report.latex import latex
from evals.report.markdown import markdown
from evals.results import frame
from evals.results.published import published
from evals.tables.figures import over_budget
from tests.support.refusals import refused
from tests.support.trees import cells, line, longbench_task, scored, setting


def test_the_csv_equals_the_summaries_and_the_figures_are_written(tmp_path):
    scored(tmp_path, {"full": [90, 100, 80, 70], "snapkv": [10, 20, 30, 45], "compresskv": [60, 55, 33, 40]})
    paths = {path.name: path for path in write("fig5_niah", tmp_path)}
    assert {path.suffix for path in paths.values()} == {".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    assert {path.parent for path in paths.values()} == {tmp_path / "artefacts" / "fig5_niah"}
    read = pd.read_csv(paths["table.csv"])
    overall = read[read["column"] == "average"].set_index("method")
    names = {"full": "FullKV", "snapkv": "SnapKV", "compresskv": "CompressKV"}
    for _, summary in frame(tmp_path).iterrows():
        row = overall.loc[names[summary["method"]]]
        assert (row["mean"], row["n"]) == (summary["score"], summary["n"])
        assert (row["low"], row["high"]) == (summary["low"], summary["high"])
        assert not row["partial"]
    first = {name: path.read_bytes() for name, path in paths.items()}
    assert ElementTree.fromstring(first["figure-tiny.svg"]).tag.endswith("svg")
    assert {path.name: path.read_bytes() for path in write("fig5_niah", tmp_path)} == first


def test_rows_are_ranked_within_a_budget_and_complete_ones_alone(tmp_path):
    low, high = [10.0 + n for n in range(20)], [60.0 + n for n in range(20)]
    scores = {"snapkv": low, "cake": [*high[:-1], high[-1] - 1], "compresskv": high, "full": [99.0] * 20}
    scored(tmp_path, {**scores, "pyramidkv": [100.0, 100.0]})
    page = page_of("fig5_niah", tmp_path)
    (grid,) = page.tables
    rows = grid.budgets[64]
    assert [row.name.method for row in grid.rows] == ["FullKV", "SnapKV", "PyramidKV", "CAKE", "CompressKV"]
    assert [row.name.method for row in grid.rows if row.cells["average"].partial] == ["PyramidKV"]
    of_methods = [
        {rows[place].name.method: rank for place, rank in grid.ranks(column, rows).items()}
        for column in ("average", "1K")
    ]
    assert of_methods == [{"CompressKV": 1, "CAKE": 2}, {"CompressKV": 1, "CAKE": 1, "SnapKV": 2}]
    found = {verdict.second: verdict for verdict in page.verdicts}
    assert (found["SnapKV"].mean, found["SnapKV"].words) == (-50, "in favour of CompressKV")
    assert found["CAKE"].outcome == "undecided"
    assert (found["CAKE"].n, found["PyramidKV"].n) == (20, 2)  # only samples that both have are compared


def test_columns_of_latex_are_tasks_or_groups(tmp_path):
    for name in ("trec", "lcc", "qasper"):
        longbench_task(tmp_path, name, experiment="table1_longbench")
    place = [f"results={tmp_path}", "experiment=table1_longbench"]
    assert main([*place, "columns=groups"]) == 0
    groups = (tmp_path / "artefacts" / "table1_longbench" / "table.tex").read_text(encoding="utf-8")
    tasks = latex(page_of("table1_longbench", tmp_path))
    for tex, heads in ((tasks, ["Qasper", "TREC", "LCC"]), (groups, ["single-doc", "few-shot", "code"])):
        head = next(row.split(" & ") for row in tex.splitlines() if row.startswith("method & "))
        assert [name.split(" ")[0] for name in head] == ["method", *heads, "average"]
    setting(tmp_path, cells([50.0, 100.0]), "snapkv", experiment="fig5_niah")
    for wrong in ([*place, "columns=rows"], [f"results={tmp_path}", "experiment=fig5_niah", "columns=groups"]):
        with refused("columns"):
            main(wrong)


def test_columns_are_in_their_natural_order_whatever_ran(tmp_path):
    def of_lengths(*lengths):
        return [line(f"L{length}-D0-N0", length=length, depth=0.0) for length in lengths]

    setting(tmp_path, of_lengths(4000, 1000, 10000), "snapkv", experiment="fig5_niah")
    setting(tmp_path, of_lengths(1500, 500), "cake", experiment="fig5_niah")
    (grid,) = page_of("fig5_niah", tmp_path).tables
    assert grid.columns == ["500", "1K", "1.5K", "4K", "10K", "average"]
    read = page_of("table1_longbench", tmp_path).frames["table"]()
    assert list(dict.fromkeys(read[read["method"] == "CAKE"]["column"])) == ["500", "1.5K", "average"]
    for method, names in {"snapkv": ("trec", "lcc", "qasper"), "cake": ("hotpotqa", "vcsum", "narrativeqa")}.items():
        for name in names:
            longbench_task(tmp_path, name, method, experiment="table1_longbench")
    (grid,) = page_of("table1_longbench", tmp_path).tables
    tasks = ["narrativeqa", "qasper", "hotpotqa", "vcsum", "trec", "lcc"]
    assert grid.columns == [*tasks, "single-doc QA", "multi-doc QA", "few-shot", "code", "average of 16"]
    for budget, layers in {64: 12, 128: 3}.items():
        kept = [line("L1000-D0-N0", length=1000, depth=0.0, kept=[budget] * layers)]
        setting(tmp_path / "layers", kept, "compresskv", budget=budget, experiment="fig9_budgets")
    (grid,) = page_of("fig9_budgets", tmp_path / "layers").tables
    assert grid.columns == [*(f"layer {n}" for n in range(12)), "average"]


def test_figures_say_over_how_much_they_are_and_what_is_partial(tmp_path):
    scored(tmp_path, {"snapkv": [10.0, 20.0], "cake": [40.0] * 4})
    scored(tmp_path, {"snapkv": [10.0, 20.0, 30.0, 50.0]}, budget=128)
    page = page_of("fig5_niah", tmp_path)
    figure = heatmaps(page.tables[0])
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(panels) == [
        "SnapKV 64\n15.0 [10.0, 20.0] †2 of 4",
        "SnapKV 128\n27.5 [15.0, 42.5]",
        "CAKE 64\n40.0 [40.0, 40.0]",
    ]
    # The lengths and depths of all, also where some did not run.
    labels = [[text.get_text() for text in axis.get_yticklabels()] for axis in panels.values()]
    assert labels == [["0", "50"]] * 3
    title = "tiny, needle in a haystack\nn = 2–4, with 95 % intervals, † and hollow: partial"
    assert figure.get_suptitle() == title
    curves = over_budget(page.tables[0])
    (axis,) = curves.axes
    assert axis.get_title() == title
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ["SnapKV †", "CAKE"]
    hollow = [line.get_xdata().tolist() for line in axis.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [[64]]
    plt.close("all")


def test_protocols_are_rows_of_their_own(tmp_path):
    for protocol, score in {"corrected": 10.0, "released": 20.0}.items():
        scored(tmp_path, {"snapkv": [score]}, protocol=protocol)
    (grid,) = page_of("fig5_niah", tmp_path).tables
    means = {row.label: row.cells["average"].mean for row in grid.rows}
    assert means == {"SnapKV (corrected)": 10.0, "SnapKV (released)": 20.0}


def test_long_axes_have_no_more_labels_than_fit(tmp_path):
    lengths = range(8000, 136_000, 8000)
    setting(tmp_path, [line(f"L{n}-D0-N0", length=n, depth=0.0) for n in lengths], "snapkv", experiment="fig5_niah")
    figure = heatmaps(page_of("fig5_niah", tmp_path).tables[0])
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["8K", "24K", "40K", "56K", "72K", "88K", "104K", "120K"]
    plt.close("all")


def test_tokens_by_layer_stand_beside_the_published_where_they_can_be_compared(tmp_path):
    values = [row.value for row in published("fig9_budgets") if (row.model[:5], row.budget) == ("Llama", 256)]
    kept = [int(value) for value in values]
    kept[0] += 2
    lines = [line("L1000-D0-N0", length=1000, depth=0.0, kept=kept, realised_budget=256.0)]
    model = "llama-3.1-8b-instruct"
    for protocol in ("released", "corrected"):
        setting(tmp_path, lines, "compresskv", budget=256, model=model, protocol=protocol, experiment="fig9_budgets")
    setting(tmp_path, lines, "compresskv", budget=256, experiment="fig9_budgets")
    read = page_of("fig9_budgets", tmp_path).frames["table"]()
    first = read[read["column"] == "layer 0"].set_index(["model", "protocol"])
    assert first.loc[(model, "released"), "difference"] == 2
    assert first.loc[(model, "corrected"), "not_comparable"] == "protocol=corrected"
    assert pd.isna(first.loc[(model, "corrected"), "difference"])
    assert pd.isna(first.loc[("tiny", "corrected"), "published"])
    layers = read[(read["column"] != "average") & (read["protocol"] == "released")]
    assert layers["difference"].abs().sum() == 2


def test_longbench_has_tasks_categories_and_an_average_and_is_partial_until_official(tmp_path):
    place = {"model": "mistral-7b-instruct-v0.3", "protocol": "released", "experiment": "table3_components"}
    for method in ("snapkv", "compresskv"):
        for name in ("qasper", "trec"):
            longbench_task(tmp_path, name, method, [40.0, 41.0, 42.0], budget=256, **place)
    page = page_of("table3_components", tmp_path)
    (grid,) = page.tables
    assert list(grid.columns) == ["qasper", "trec", "single-doc QA", "few-shot", "average of 16"]
    cell = grid.rows[0].cells["average of 16"]
    assert cell.partial
    assert (cell.mean, cell.published, cell.apart) == (41.0, 43.76, "partial")
    assert "(paper 43.76, not comparable: partial)" in markdown(page)


def test_needles_that_stand_in_say_so(tmp_path):
    scored(tmp_path, {"snapkv": [10.0, 20.0]}, "table3_components")
    assert "nothing here is a LongBench score" in markdown(page_of("table3_components", tmp_path))
