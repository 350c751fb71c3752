"""`python -m evals.results compare`: paired verdicts from files alone."""

import csv

import pytest

from evals.cli import main
from evals.experiments import ALL
from evals.report.html.reading import read
from evals.report.html.scores import boards
from evals.results.compare import comparisons
from evals.results.record import records
from evals.tables.compare import verdicts
from tests.support.refusals import assert_sentence
from tests.support.trees import about, setting


def test_settings_that_differ_are_told_apart(tmp_path):
    setting(tmp_path, [90.0] * 12, method="full", budget=None)
    setting(tmp_path, [40.0 + n for n in range(12)])
    setting(tmp_path, [41.0 + n + (-1) ** n * 3 for n in range(12)], method="cake")
    (comparison,) = comparisons(records(tmp_path), "score")
    assert comparison.mean("SnapKV 64") == pytest.approx(45.5)
    verdicts = {frozenset((pair.first, pair.second)): pair for pair in comparison.pairs}
    assert verdicts[frozenset(("FullKV", "SnapKV 64"))].differs
    close = verdicts[frozenset(("CAKE 64", "SnapKV 64"))]
    assert not close.differs
    assert close.difference.needed > 12
    assert comparison.letters("CAKE 64") == comparison.letters("SnapKV 64") != comparison.letters("FullKV")


def test_only_samples_that_all_have_are_compared(tmp_path):
    setting(tmp_path, {"a": 10.0, "b": 20.0, "c": 90.0})
    setting(tmp_path, {"c": 80.0, "b": 10.0}, method="cake")
    (comparison,) = comparisons(records(tmp_path), "score")
    assert {name: sorted(values) for name, (values,) in comparison.values.items()} == {
        "CAKE 64": [10.0, 80.0],
        "SnapKV 64": [20.0, 90.0],
    }
    (pair,) = comparison.pairs
    assert abs(pair.difference.mean) == 10
    assert comparisons(records(tmp_path), "kl") == []  # without kl in any line


def test_over_all_tasks_every_task_counts_the_same(tmp_path):
    for method, more in (("snapkv", 0.0), ("cake", 8.0)):
        setting(tmp_path, [10.0 + more] * 8, method=method, task="qasper")
        setting(tmp_path, [30.0] * 2, method=method, task="trec")
    *by_task, everything = comparisons(records(tmp_path), "score")
    assert len(by_task) == 2
    assert everything.n == 10
    assert {name: everything.mean(name) for name in everything.values} == {"CAKE 64": 24, "SnapKV 64": 20}
    (pair,) = everything.pairs
    assert abs(pair.difference.mean) == 4


def test_the_command(tmp_path, capsys):
    setting(tmp_path, [0.0, 100.0])
    assert main(["results", "compare", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --metric=score: ")
    setting(tmp_path, [50.0, 100.0], method="[red]cake")
    assert main(["results", "compare", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "[red]cake 64" in shown
    assert "undecided" in shown
    assert main(["results", "compare", "--metric", "prediction", "--results", str(tmp_path)]) == 2
    assert_sentence(capsys.readouterr().err.strip(), "--metric")


def methods(results):
    """Three methods at two budgets, which differ by a little."""
    for budget in (64, 128):
        for number, method in enumerate(("compresskv", "snapkv", "cake", "full")):
            scores = [(37 * n + 11 * number * n) % 90 + 3.0 * number + budget / 64 for n in range(20)]
            if method != "full" or budget == 64:
                setting(results, scores, method=method, budget=None if method == "full" else budget)


def compared(results, *given):
    """The rows of the file that the command writes."""
    file = results / "compared.csv"
    assert main(["results", "compare", "--results", str(results), "--csv", str(file), *given]) == 0
    return list(csv.DictReader(file.open(encoding="utf-8")))


def test_a_comparison_has_the_p_value_of_the_page(tmp_path, capsys):
    methods(tmp_path)
    (board,) = boards(read(tmp_path))
    page = {(verdict.budget, verdict.second): verdict for verdict in verdicts(ALL, board.table)}
    assert set(page) == {(budget, method) for budget in (64, 128) for method in ("SnapKV", "CAKE")}
    # Whether the method is named or not: the page is about this one.
    for given in ([], ["--against", "compresskv"]):
        rows = compared(tmp_path, *given)
        found = {(int(row["budget"]), row["second"]): float(row["p"]) for row in rows}
        assert found == {place: pytest.approx(verdict.p, abs=1e-4) for place, verdict in page.items()}
        assert {row["first"] for row in rows} == {"CompressKV"}
    shown = capsys.readouterr().out
    assert all(f"{verdict.p:.3f}" in shown for verdict in page.values())
    rows = compared(tmp_path, "--against", "cake", "--latex", str(tmp_path / "compared.tex"))
    assert [(row["first"], row["second"]) for row in rows].count(("CAKE", "SnapKV")) == 2
    tex = (tmp_path / "compared.tex").read_text(encoding="utf-8")
    assert [tex.count(name) for name in ("SnapKV $-$ CAKE", "CompressKV $-$ CAKE", "FullKV")] == [2, 2, 0]


def test_what_cannot_be_compared_is_named(tmp_path):
    methods(tmp_path)
    csv_file, nowhere = ["--csv", str(tmp_path / "x.csv")], ["--csv", str(tmp_path / "nowhere" / "x.csv")]
    for given in (["--against", "tova"], ["--against", "full"], ["--against", "all", *csv_file], nowhere):
        assert main(["results", "compare", "--results", str(tmp_path), *given]) == 2
    assert not (tmp_path / "x.csv").exists()
    assert main(["results", "compare", "--results", str(tmp_path), "--against", "all"]) == 0


def test_variants_of_one_method_are_compared_with_each_other(tmp_path, capsys):
    for window in (8, 16):
        config = {**about("compresskv")["config"], "observation": {"window": window}}
        setting(tmp_path, [float(window), 30.0], method="compresskv", digest=f"{window:08}", config=config)
    assert main(["results", "compare", "--results", str(tmp_path)]) == 0
    assert "window=16" in capsys.readouterr().out
