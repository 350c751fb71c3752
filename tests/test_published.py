"""The published numbers are complete, say where they come from, and agree with each other."""

import csv
import re
from collections import defaultdict

import pytest

from compresskv import calibration
from compresskv.layer_error import layer_budgets
from evals.longbench.tasks import CATEGORIES
from evals.results.published import COLUMNS, _all, published
from tests.support.refusals import refused

ITEMS = [
    "table1_longbench", "table2_heads", "table3_components", "fig5_niah", "fig7_masking", "fig9_budgets",
    "v2_table1_models", "v2_table2_selector", "v2_fig5_niah", "v2_fig9_plugin",
]  # fmt: skip


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_has_numbers_with_a_source(item):
    rows = published(item)
    assert rows
    for row in rows:
        assert re.fullmatch(r"second-hand|released code|paper v1 (text|table \d+)", row.source)
        assert row.second_hand or not item.startswith("v2_")
        assert not row.second_hand or row.note
    keys = [(row.model, row.method, row.budget, row.task_or_metric, row.unit, row.source) for row in rows]
    assert len(set(keys)) == len(keys)
    assert published("calibration_leakage") == []  # an experiment that is not the paper's


def test_table_5_is_the_papers(shared):
    columns = ("single_doc_qa", "multi_doc_qa", "summarization", "few_shot", "synthetic", "code")
    names = dict(zip(columns, CATEGORIES, strict=True))
    with (shared / "paper" / "table5_longbench.csv").open() as file:
        lines = list(csv.DictReader(file))
    expected = {}
    for line in lines:
        setting = (line.pop("model"), line.pop("method"), line.pop("budget"))
        expected |= {(*setting, names.get(column, "average of 16")): float(value) for column, value in line.items()}
    rows = [row for row in published("table1_longbench") if row.unit == "score"]
    assert {(r.model, r.method, str(r.budget or ""), r.task_or_metric): r.value for r in rows} == expected


def test_averages_are_those_of_the_categories():
    scores = defaultdict(dict)
    for row in published("table1_longbench"):
        if row.unit == "score":
            scores[row.model, row.method, row.budget][row.task_or_metric] = row.value
    assert len(scores) == 52
    for of_setting in scores.values():
        weighted = sum((2 if name in ("synthetic", "code") else 3) * of_setting[name] for name in CATEGORIES) / 16
        assert weighted == pytest.approx(of_setting["average of 16"], abs=0.0101)


def test_tables_agree_where_they_overlap():
    average = {
        (row.model, row.method, row.budget): row.value
        for row in published("table1_longbench")
        if row.task_or_metric == "average of 16"
    }
    components = {row.method: row.value for row in published("table3_components")}
    heads = {row.method: row.value for row in published("table2_heads")}
    mistral = "Mistral-7B-Instruct-v0.3"
    assert components["SnapKV"] == average[mistral, "SnapKV", 256]
    assert components["SnapKV + semantic heads + layer budgets"] == average[mistral, "CompressKV", 256]
    assert components["SnapKV + semantic heads"] == heads["top-4 heads"]
    for row in published("v2_table1_models"):
        if (row.model, row.method, row.budget) in average:
            assert row.value == average[row.model, row.method, row.budget]


def test_layer_budgets_are_what_the_published_layer_scores_give():
    found = defaultdict(list)
    for row in published("fig9_budgets"):
        found[row.model, row.budget].append(row.value)
    assert len(found) == 12
    for (model, budget), tokens in found.items():
        scores = calibration.load(calibration.FOLDER / f"{model.lower()}.published.json").layer_scores
        assert tokens == list(layer_budgets(scores, total=32 * budget, floor=32, cap=3 * budget))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("x,m,n,256,t,many,score,s,", "value"),
        ("x,m,n,2.5,t,1,score,s,", "budget"),
        ("x,m,n,256,t,1", None),
        ("x,m,n,2,t,1,score,s,,y", None),
    ],
)
def test_a_line_of_another_shape_is_one_sentence(tmp_path, line, field):
    (tmp_path / "b.csv").write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with refused(field, where=f"{tmp_path / 'b.csv'}, line 2"):
        published("x", tmp_path)
    (tmp_path / "b.csv").write_text("model,value\nx,1\n")
    _all.cache_clear()
    with refused(None):
        published("x", tmp_path)
