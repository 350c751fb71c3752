"""`python -m evals.results compare`: paired verdicts from files alone."""

import pytest

from evals.results.__main__ import main
from evals.results.compare import comparisons
from evals.results.record import records
from tests.results.trees import line, setting


def test_settings_that_differ_are_told_apart(tmp_path):
    setting(tmp_path, [90.0] * 12, method="full", budget=None)
    setting(tmp_path, [40.0 + n for n in range(12)])
    setting(tmp_path, [41.0 + n + (-1) ** n * 3 for n in range(12)], method="cake")
    (comparison,) = comparisons(records(tmp_path), "score")
    assert comparison.mean("snapkv 64") == pytest.approx(45.5)
    verdicts = {frozenset((pair.first, pair.second)): pair for pair in comparison.pairs}
    assert verdicts[frozenset(("full", "snapkv 64"))].differs
    close = verdicts[frozenset(("cake 64", "snapkv 64"))]
    assert not close.differs
    assert close.difference.needed > 12
    assert comparison.letters("cake 64") == comparison.letters("snapkv 64") != comparison.letters("full")


def test_only_samples_that_all_have_are_compared(tmp_path):
    setting(tmp_path, {"a": 10.0, "b": 20.0, "c": 90.0})
    setting(tmp_path, {"c": 80.0, "b": 10.0}, method="cake")
    (comparison,) = comparisons(records(tmp_path), "score")
    assert {name: sorted(values) for name, (values,) in comparison.values.items()} == {
        "cake 64": [10.0, 80.0],
        "snapkv 64": [20.0, 90.0],
    }
    (pair,) = comparison.pairs
    assert abs(pair.difference.mean) == 10


def test_over_all_tasks_every_task_counts_the_same(tmp_path):
    for method, more in (("snapkv", 0.0), ("cake", 8.0)):
        setting(tmp_path, [10.0 + more] * 8, method=method, task="qasper")
        setting(tmp_path, [30.0] * 2, method=method, task="trec")
    *by_task, everything = comparisons(records(tmp_path), "score")
    assert len(by_task) == 2
    assert everything.n == 10
    assert {name: everything.mean(name) for name in everything.values} == {"cake 64": 24, "snapkv 64": 20}
    (pair,) = everything.pairs
    assert abs(pair.difference.mean) == 4


def test_the_command(tmp_path, capsys):
    setting(tmp_path, [0.0, 100.0])
    assert main(["compare", "--results", str(tmp_path)]) == 2
    assert "no two settings of a task have it" in capsys.readouterr().err
    setting(tmp_path, [50.0, 100.0], method="[red]cake")
    assert main(["compare", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "[red]cake 64" in shown
    assert "not told apart" in shown
    assert main(["compare", "--metric", "prediction", "--results", str(tmp_path)]) == 2
    assert "--metric prediction" in capsys.readouterr().err


def test_lines_without_a_number_are_left_out(tmp_path):
    assert line("0")["score_words"] == 25
    setting(tmp_path, [10.0, 20.0])
    setting(tmp_path, [10.0, 20.0], method="cake")
    assert [comparison.n for comparison in comparisons(records(tmp_path), "score_words")] == [2]
    assert comparisons(records(tmp_path), "kl") == []
