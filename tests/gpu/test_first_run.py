"""The script of the first run on a GPU, with the CPU in the place of the GPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.command import ROOT


@pytest.mark.slow
def test_the_first_gpu_run(shared, tmp_path):
    script = shared / "gpu" / "first_run.sh"
    if not script.exists():
        pytest.skip("the shared data has no script of the first GPU run")
    env = {**os.environ, "FIRST_TINY": "1", "OUT": str(tmp_path), "FIRST_PYTHON": sys.executable}
    done = subprocess.run(["bash", str(script)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    found = [json.loads(line) for line in (tmp_path / "first_run.jsonl").read_text().splitlines()]
    assert not [line for line in found if line["what"].startswith("FAILED")]
    replayed = [line["same"] for line in found if line["what"].startswith("graph gives")]
    assert replayed
    assert all(replayed)
