"""`+plan=true`: what a run will take, said without running it or leaving anything behind."""

import json
import re
import tempfile

import pytest

from evals.running.plan import Speed, mean_length, operations, plan, works
from evals.running.sweep import run as run_jobs
from tests.support.command import run
from tests.support.jobs import job
from tests.support.refusals import assert_refused, refused

GRID = ["eval.lengths=[300,400]", "eval.depths=3", "eval.max_new_tokens=8"]


def test_a_sweep_is_planned_and_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = run("-m", "method=full,snapkv", "budget=32,64", "+plan=true", *GRID, *tiny)
    assert done.returncode == 0, done.stderr
    cells = cells_of(done.stdout)
    assert cells[:5] == ["tiny-llama", "niah needle", "corrected", "3", "6"]
    assert 6 * 340 < int(cells[5].strip("~")) <= 2100
    assert cells[6:8] == ["400", "8"]
    assert float(cells[8].strip("*")) > 0
    assert list(tmp_path.iterdir()) == []


def cells_of(printed):
    """The cells of the only task in a plan."""
    row = next(line for line in printed.splitlines() if "needle" in line)
    return [cell.strip() for cell in row.strip("│┃ ").split("│")]


def row_of(jobs, capsys):
    capsys.readouterr()
    plan(jobs)
    out, err = capsys.readouterr()
    assert "1/1 tasks" in err
    return cells_of(out)


def test_a_plan_is_true_or_false(tiny, tmp_path):
    done = run("method=snapkv", "+plan=maybe", *tiny)
    assert done.returncode == 1
    assert_refused(done, "plan")
    assert not (tmp_path / "out").exists()


def test_what_is_finished_is_not_counted(on_tiny_model, tiny, tmp_path, capsys):
    def jobs(*methods):
        return [job(f"method={method}", "budget=32", *GRID, *tiny) for method in methods]

    [work] = works(on_tiny_model, jobs("snapkv", "full"))
    assert (len(work.settings), len(work.prompts), work.task.longest_prompt) == (2, 6, 400)
    assert 340 < mean_length(work) <= 350
    run_jobs(jobs("snapkv"))
    [work] = works(on_tiny_model, jobs("snapkv", "full"))
    assert (len(work.settings), len(work.prompts), work.finished) == (1, 6, 1)
    assert row_of(jobs("snapkv", "full"), capsys)[3:5] == ["1, 1 finished", "6"]
    narrow = [job("method=tova", "budget=32", *GRID, "eval.depths=[0]", *tiny)]
    run_jobs(narrow)
    assert row_of(jobs("tova"), capsys)[3:5] == ["1", "4 of 6"]
    assert works(on_tiny_model, jobs("snapkv")) == []
    capsys.readouterr()
    plan(jobs("snapkv"))
    assert "nothing is left to run" in capsys.readouterr().out


def test_settings_that_share_no_prefill_are_apart(on_tiny_model, tiny):
    both = [job("method=snapkv", f"protocol={protocol}", *GRID, *tiny) for protocol in ("corrected", "released")]
    chunked = job("method=snapkv", "prefill_chunk=64", *GRID, *tiny)
    assert [work.jobs[0] for work in works(on_tiny_model, [*both, chunked])] == [*both, chunked]


def test_hours_follow_from_what_was_measured(on_tiny_model, tiny):
    [work] = works(on_tiny_model, [job("method=snapkv", *GRID, *tiny)])
    same = Speed(round(mean_length(work)), prompt=2.0, step=0.5)
    assert same.seconds(work) == pytest.approx(6 * (2.0 + 8 * 0.5), rel=0.01)
    assert 2 < operations(on_tiny_model, 2000) / operations(on_tiny_model, 1000) < 4


def test_other_evaluations(on_tiny_model, tiny, tmp_path, capsys):
    rows = [{"prompt": "Say yes. " * n, "answers": ["yes"]} for n in (40, 60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"eval.data={tmp_path / 'own.jsonl'}", "eval.metric=exact_match", "eval.max_new_tokens=3"]
    plan([job("eval=jsonl", "method=snapkv", "budget=32", "fidelity=true", *own, *tiny)])
    assert re.search(r"jsonl own .* 2 ", capsys.readouterr().out)
    with refused("plan", value=True):
        plan([job("eval=efficiency", "method=snapkv", *tiny)])
    assert not (tmp_path / "out").exists()
