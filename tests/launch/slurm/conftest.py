"""Fixtures for the SLURM tests: a shared cluster, and the harness on it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.launch.slurm.cluster import Cluster, missing
from tests.support.command import ROOT, arguments


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running SLURM. Without the daemons the test is skipped, or fails if COMPRESSKV_REQUIRE_SLURM is set."""
    lacking = missing() + ([] if find_spec("submitit") else ["submitit"])
    if lacking:
        refuse = pytest.fail if os.environ.get("COMPRESSKV_REQUIRE_SLURM") else pytest.skip
        refuse(f"not installed: {', '.join(lacking)}")
    # Paths in pytest's temporary folders are too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    running = Cluster(folder)
    yield running
    running.stop()
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Harness:
    """`python run.py -m hydra/launcher=slurm …` on the cluster, with the tiny model and a separate results folder."""

    cluster: Cluster
    checkpoint: Path
    folder: Path

    def command(self, *overrides: str, launcher: str = "slurm") -> list[str]:
        cluster = ["hydra.launcher.cpus=1", "hydra.launcher.poll=0.3", "hydra.launcher.notice=10"]
        return arguments(
            "-m",
            f"hydra/launcher={launcher}",
            *(cluster if launcher == "slurm" else []),
            *(f"model.path={self.checkpoint}", "model.dtype=float32", "model.device=cpu"),
            *("eval.lengths=[200,300]", "eval.max_new_tokens=4", f"paths.results={self.results}"),
            *overrides,
        )

    @property
    def results(self) -> Path:
        return self.folder / "out"

    @property
    def env(self) -> dict[str, str]:
        return {**self.cluster.env, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(self, *overrides: str, launcher: str = "slurm") -> subprocess.CompletedProcess:
        """Run the command to completion and capture its output."""
        command = self.command(*overrides, launcher=launcher)
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=120)

    @contextmanager
    def start(self, *overrides: str, **options) -> Iterator[subprocess.Popen]:
        """Start the command and yield its process, which is killed at the end of the block."""
        options |= {"cwd": ROOT, "env": self.env, "text": True}
        with subprocess.Popen(self.command(*overrides), **options) as driver:
            try:
                yield driver
            finally:
                driver.kill()

    def samples(self) -> int:
        """Return the number of sample lines that all jobs have written so far."""
        return sum(path.read_text().count("\n") for path in self.results.rglob("samples.jsonl"))


@pytest.fixture(scope="module")
def sweep_harness(cluster, checkpoint, tmp_path_factory) -> Harness:
    return Harness(cluster, checkpoint, tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def harness(cluster, checkpoint, tmp_path) -> Iterator[Harness]:
    yield Harness(cluster, checkpoint, tmp_path)
    cluster.clear()
