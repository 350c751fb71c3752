"""Running the harness as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def arguments(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *overrides]


def run(*overrides: str, **options) -> subprocess.CompletedProcess:
    """`python run.py …` to its end, output captured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        arguments(*overrides), capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, **options
    )
