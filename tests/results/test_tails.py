"""The tails of fidelity, from lines alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.report import terminal
from evals.report.artefacts import page_of
from evals.report.latex import appendix
from evals.report.markdown import markdown
from evals.results.record import records
from evals.results.tails import HEADER, tails, thirds
from tests.support.trees import line, setting

KL = [[0.0, 0.1, 0.2], [0.4, 0.5, 3.0], [0.0]]


def tree(results, **fields):
    """The full cache, and a setting that changes one answer of three."""
    lines = [line(str(n), budget=None, kl=0.0, agreement=1.0, kl_per_token=[0.0] * len(kl)) for n, kl in enumerate(KL)]
    for of_line, kl in zip(lines, KL, strict=True):
        of_line |= {"control_agreement": 1.0, "control_kl_per_token": [1e-7] * len(kl)}
    setting(results, lines, method="full", budget=None, **fields)
    lines = [
        line(str(n), kl=float(np.mean(kl)), agreement=1 - (n == 1) * 2 / 3, kl_per_token=kl) for n, kl in enumerate(KL)
    ]
    lines[1]["prediction"] = "another answer"
    setting(results, lines, **fields)


def cells(results):
    (table,) = tails(records(results))
    return {row[0]: dict(zip(HEADER, row, strict=True)) for row in table.body}


def test_the_tails_of_a_setting(tmp_path):
    tree(tmp_path)
    control, found = cells(tmp_path).values()
    assert float(control["KL"]) == pytest.approx(1e-7)
    assert float(control["changed tokens, %"]) == 0
    tokens = np.concatenate(KL)
    assert (found["n"], found["tokens"]) == ("3", "7")
    for name, value in {
        "KL": tokens.mean(),
        "median": np.median(tokens),
        "99 %": np.quantile(tokens, 0.99),
        "maximum": 3.0,
        "first third": 0.2,
        "middle": 0.2,
        "last third": 1.6,
    }.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-4)
    assert float(found["changed tokens, %"]) == pytest.approx(100 * 2 / 7, abs=0.01)
    assert float(found["equal answers, %"]) == pytest.approx(100 * 2 / 3, abs=0.01)


def test_answers_are_compared_with_the_full_cache_under_evictions_while_decoding(tmp_path):
    tree(tmp_path, of_config={"eviction": {"when": "prompt+decode", "interval": 2, "protect": "none"}})
    (found,) = (of_row for name, of_row in cells(tmp_path).items() if name.startswith("SnapKV"))
    assert float(found["equal answers, %"]) == pytest.approx(100 * 2 / 3, abs=0.01)


def test_lines_without_texts_have_no_equal_answers(tmp_path):
    tree(tmp_path)
    bare = [{name: value for name, value in line(str(n)).items() if name != "prediction"} for n in range(3)]
    fields = {"kl": 0.1, "agreement": 1.0, "kl_per_token": [0.1]}
    setting(tmp_path, [each | fields for each in bare], method="cake")
    found = cells(tmp_path)
    assert found["CAKE 64"]["equal answers, %"] == "–"
    assert found["CAKE 64"]["first third"] == "–"  # a single token is in the middle


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_thirds_share_all_tokens(lengths):
    """Weighted by their tokens, the means of the thirds are the mean; long answers have equal thirds."""
    answers = [np.arange(length, dtype=float) for length in lengths]
    counts = [
        sum(int(((3 * (n + 0.5)) // length) == third) for length in lengths for n in range(length))
        for third in range(3)
    ]
    parts = [mean * count for mean, count in zip(thirds(answers), counts, strict=True) if count]
    assert sum(parts) / sum(lengths) == pytest.approx(np.concatenate(answers).mean())
    if len(lengths) == 1 and lengths[0] % 3 == 0:
        assert len(set(counts)) == 1


def test_every_report_has_them_but_of_older_lines(tmp_path, capsys):
    setting(tmp_path / "older", [line(str(n), kl=0.5, agreement=0.5) for n in range(3)])
    assert tails(records(tmp_path / "older")) == []
    tree(tmp_path, of_config={"experiment": "mine"})
    terminal.show(records(tmp_path))
    page = page_of("mine", tmp_path)
    for shown in (capsys.readouterr().out, markdown(page), appendix(page)):
        assert "changed tokens" in " ".join(shown.split())
