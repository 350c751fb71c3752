"""Only samples with the same prompt and weights are compared, and the others are reported."""

import json

import numpy as np
import pytest

from evals.cli import main
from evals.longbench.tables import tables as longbench_tables
from evals.report.artefacts import page_of
from evals.report.html.writing import page
from evals.results import frame
from evals.results.compare import comparisons
from evals.results.record import records
from evals.results.store import SampleStore
from evals.ruler.tables import tables as ruler_tables
from evals.tables.compare import Question, verdicts
from evals.tables.methods import Name
from tests.support.tables import table
from tests.support.trees import cells, line
from tests.support.trees import setting as finished


def setting(results, method, scores, prompt="", **fields):
    """A finished setting; `prompt` goes into the hash of each prompt, None leaves it out."""
    lines = [line(id, score, prompt_sha256=f"{id}{prompt}") for id, score in scores.items()]
    for each in lines if prompt is None else ():
        del each["prompt_sha256"]
    finished(results, lines, method, **fields)


GOOD, BAD = {str(n): 90.0 + n % 3 for n in range(12)}, {str(n): 10.0 + n % 5 for n in range(12)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"model_fingerprint": "a"}, {"model_fingerprint": "b"}),
        ({"prompt": None}, {"prompt": "b"}),
        ({"prompt": None, "model_fingerprint": "a"}, {"prompt": None, "model_fingerprint": "b"}),
    ],
)
def test_settings_of_other_prompts_or_weights_are_not_compared(tmp_path, capsys, one, other):
    setting(tmp_path, "snapkv", GOOD, **one)
    setting(tmp_path, "cake", BAD, **other)
    assert not any(comparison.pairs for comparison in comparisons(records(tmp_path), "score"))
    assert main(["results", "compare", "--results", str(tmp_path)]) == 2
    assert "SnapKV 64" in capsys.readouterr().err


def test_the_best_method_is_compared_as_if_all_were():
    """The data choose the best, so a family has as few false differences as one that compares all pairs."""
    random = np.random.default_rng(0)
    families = [
        verdicts(Question(subject=""), table({f"method {n}": random.normal(50, 10, 30) for n in range(12)}))
        for _ in range(30)
    ]
    assert all(len(family) == 11 for family in families)
    assert sum(any(verdict.shown for verdict in family) for family in families) <= 4
    far = {name: random.normal(20, 3, 30) for name in "abc"}
    (*_, verdict) = verdicts(Question(subject=""), table({**far, "d": [90.0] * 30}))
    assert verdict.shown


def test_protocols_are_ranked_and_compared_separately():
    scores = {("SnapKV", "corrected"): 10.0, ("CAKE", "corrected"): 20.0}
    scores |= {("SnapKV", "released"): 90.0, ("CAKE", "released"): 80.0}
    rows = {
        Name(method, 64, protocol, marked=protocol == "released"): [score + n / 9 for n in range(12)]
        for (method, protocol), score in scores.items()
    }
    assert table(rows).ranks("average") == {0: 2, 1: 1, 2: 1, 3: 2}
    assert {verdict.first for verdict in verdicts(Question(subject=""), table(rows))} == {"CAKE", "SnapKV (released)"}


def test_a_failed_sample_makes_the_column_of_its_task_partial(tmp_path):
    made = {}
    for task in ("cwe", "vt"):
        lines = [line(f"L4096-S{n}", 10.0 * n, length=4096, answers=["x"]) for n in range(3)]
        made[task] = finished(tmp_path, lines, eval="ruler", task=task)
    store = SampleStore(made["cwe"].path)
    store.append({"id": "L4096-S3", "error": "prompt: out of memory", "length": 4096})
    store.close()
    (table,) = ruler_tables(records(tmp_path))
    assert {column: cell.partial for column, cell in table.rows[0].cells.items()} == {
        **{"cwe": True, "vt": False},
        **dict.fromkeys(table.columns[2:], True),
    }


def test_longbench_pairs_only_kl_along_equal_numbers_of_tokens(tmp_path):
    for method, tokens in (("snapkv", 512), ("cake", 64), ("streaming_llm", 64)):
        lines = [line(str(n), 10.0, kl=0.1 * n) for n in range(4)]
        of_config = {"fidelity": {"tokens": tokens}}
        finished(tmp_path, lines, method, eval="longbench", task="qasper", of_config=of_config)
    score, kl, *_ = longbench_tables(records(tmp_path))
    samples = {row.name.method: row.cells["qasper"].samples for row in kl.rows}
    assert samples["CAKE"] == samples["StreamingLLM"] != samples["SnapKV"]
    assert len({frozenset(row.cells["qasper"].samples) for row in score.rows}) == 1


def test_settings_without_hashes_are_paired_by_what_their_summaries_say_of_the_prompts(tmp_path):
    setting(tmp_path, "snapkv", GOOD, prompt=None)
    setting(tmp_path, "cake", BAD, prompt=None)
    (comparison,) = comparisons(records(tmp_path), "score")
    assert (comparison.n, len(comparison.pairs)) == (12, 1)


def test_one_setting_of_other_prompts_leaves_the_others_comparable(tmp_path, capsys):
    setting(tmp_path, "full", GOOD, prompt="edited")
    setting(tmp_path, "snapkv", GOOD)
    setting(tmp_path, "cake", BAD)
    alone, both = comparisons(records(tmp_path), "score")[::-1]
    assert sorted(both.values) == ["CAKE 64", "SnapKV 64"]
    assert (both.n, both.left_out, both.apart, both.pairs[0].differs) == (12, 0, ["FullKV"], True)
    assert (list(alone.values), alone.pairs) == (["FullKV"], [])
    assert main(["results", "compare", "--results", str(tmp_path)]) == 0
    assert "FullKV" in capsys.readouterr().out


def test_an_edited_sample_is_left_out(tmp_path):
    setting(tmp_path, "snapkv", GOOD)
    prompts = {id: "another" if id == "3" else id for id in BAD}
    finished(tmp_path, [line(id, score, prompt_sha256=prompts[id]) for id, score in BAD.items()], "cake")
    (comparison,) = comparisons(records(tmp_path), "score")
    assert (comparison.n, comparison.left_out) == (11, 1)


def experiment(results, **of_snapkv):
    lines = cells([90.0, 80.0, 95.0, 85.0] * 3)
    for number, each in enumerate(lines):
        each["id"] = each["prompt_sha256"] = f"L1000-D{number}-N0"
    others = [each | {"score": each["score"] - 70, **of_snapkv} for each in lines]
    finished(results, lines, "compresskv", experiment="fig5_niah")
    finished(results, others, "snapkv", experiment="fig5_niah")


def test_reports_compare_and_rank_equal_prompts_alone(tmp_path):
    experiment(tmp_path / "same")
    experiment(tmp_path / "other", prompt_sha256="another haystack")
    same, other = (page_of("fig5_niah", tmp_path / name) for name in ("same", "other"))
    assert len(same.verdicts) == 1
    assert not other.verdicts
    assert len(other.notes) == len(same.notes) + 1
    assert "better than" in page(tmp_path / "same")
    assert "better than" not in page(tmp_path / "other")
    assert "12 of 12 samples" in page(tmp_path / "other")
    data = json.loads(page(tmp_path / "other").split('id="data">')[1].split("</script>")[0])
    assert all(len(sample["by"]) == 1 for sample in data["samples"])


def test_frames_tell_prompts_apart(tmp_path):
    setting(tmp_path, "snapkv", GOOD)
    setting(tmp_path, "cake", GOOD)
    setting(tmp_path, "tova", GOOD, prompt="edited")
    samples = frame(tmp_path, by="sample")
    assert samples["id"].nunique() == 12
    assert samples["sample"].nunique() == 24
