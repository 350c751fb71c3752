"""A tree of 20,000 summaries takes little memory and gives a page that browsers can open."""

import os
import subprocess
import sys

import pytest

from evals.longbench.tasks import ENGLISH
from tests.support.command import ROOT
from tests.support.trees import longbench, needles

MODELS = 10
METHODS = {"full": None, **dict.fromkeys(["streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "adakv"], 0.5)}
METHODS |= {"compresskv": 0.85, "random": 0.1, "tova": 0.4}


@pytest.mark.slow
def test_20000_summaries(tmp_path):
    results = tmp_path / "results"
    for number in range(MODELS):
        model = f"model-{number}"
        longbench(results, model, ENGLISH, 5, [16 * n for n in range(1, 12)], METHODS)
        needles(results, model, depths=5, budgets=[16 * n for n in range(1, 134)])
    assert sum(1 for _ in results.rglob("summary.json")) >= 20_000
    command = [sys.executable, "-m", "evals.report", str(results), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone, whatever ran before
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss < 1e6  # kB
    assert (tmp_path / "out" / "index.html").stat().st_size < 20e6
