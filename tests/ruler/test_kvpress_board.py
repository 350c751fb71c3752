"""`experiment=kvpress_board`: the rows of kvpress's leaderboard beside our methods, from one prefill a prompt."""

from evals.compose import axes, sweep
from evals.report import selection
from evals.results.record import records
from tests.support.command import run
from tests.support.kvpress_here import kvpress_or_skip

kvpress_or_skip()

LEADERBOARD = {
    *("random", "knorm", "snapkv", "expected_attention", "streaming_llm", "tova", "observed_attention", "pyramidkv"),
    *("lagkv", "keydiff", "adakv_compactor", "cur"),
}
"""The press names of its evaluation/leaderboard.sh that are served, compressing the context alone."""

QUERY_AWARE = {"snapkv", "adakv_snapkv", "chunkkv"}
"""Those that it compresses with the question."""

OURS = {"full", "streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "adakv", "compresskv"}


def test_it_has_every_row_of_the_leaderboard_that_is_served():
    swept = axes("experiment=kvpress_board")
    assert set(swept["method"]) == OURS | {f"kvpress/{name}" for name in LEADERBOARD | QUERY_AWARE}
    assert set(swept["eviction.when"]) == {"prompt", "context"}
    dropped = [1 - float(budget.removesuffix("%")) / 100 for budget in swept["budget"]]
    assert dropped == [0.25, 0.5, 0.75, 0.875]


def test_it_runs_at_smoke_size(tiny, tmp_path, monkeypatch):
    methods = "method=full,kvpress/adakv_snapkv"
    monkeypatch.setattr(selection, "sweep", lambda *given, **options: sweep(*given, methods, **options))
    small = ["+size=smoke", "eval.tasks=[niah_multikey_2]", "eval.lengths=[600]"]
    done = run("-m", "experiment=kvpress_board", methods, *small, *tiny)
    assert done.returncode == 0, done.stderr
    made = [record for record in records(tmp_path / "out") if record.method != "full"]
    assert {record.config["eviction"]["when"] for record in made} == {"prompt", "context"}
    assert {record.method for record in made} == {"kvpress.adakv_snapkv"}
    assert {str(record.budget) for record in made} == {"25%"}
    assert (tmp_path / "out" / "artefacts" / "kvpress_board" / "table.md").exists()
