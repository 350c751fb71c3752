"""The margins of equivalence that a report takes."""

import csv

import pytest

from evals.report.__main__ import main
from tests.support.refusals import refused
from tests.support.trees import setting


def tree(results):
    """Two methods with equal scores of 20 samples."""
    scores = [(37 * n) % 90 + 0.0 for n in range(20)]
    for method in ("snapkv", "compresskv"):
        setting(results, scores, method=method, of_config={"experiment": "mine"})


@pytest.mark.parametrize(("given", "margin", "verdict"), [([], 2.0, False), (["--margin", "score=20"], 20.0, True)])
def test_a_margin_replaces_the_default(tmp_path, given, margin, verdict):
    tree(tmp_path)
    assert main(["experiment=mine", "--results", str(tmp_path), *given]) == 0
    with (tmp_path / "artefacts" / "mine" / "comparisons.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["margin"]) == margin
    assert (float(row["p_equivalence"]) < 0.05) == verdict


def test_the_page_has_the_margin(tmp_path):
    tree(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "page"), "--margin=score=20"]) == 0
    assert "equivalent within 20" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", ["score=0", "score=-1", "score=nan", "score=", "score", "words=1", "2", "kl=1 kl=2"])
def test_what_is_no_margin_is_refused(tmp_path, words):
    tree(tmp_path)
    margins = [f"--margin={word}" for word in words.split()]
    with refused("--margin"):
        main(["experiment=mine", "--results", str(tmp_path), *margins])
