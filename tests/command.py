"""Running the harness as a user does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
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


def folders(tmp_path):
    return sorted(path.parent for path in (tmp_path / "out" / "runs").rglob("samples.jsonl"))


def content(tmp_path):
    """All samples and summaries, without what may differ between runs: timing, environment, paths."""
    found = {}
    for folder in folders(tmp_path):
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("timing")
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("timing", "environment", "config"):
            summary.pop(name)
        key = str(folder.relative_to(tmp_path))
        found[key] = ({line["id"]: line for line in lines}, [line["id"] for line in lines], summary)
    return found


def kill_and_resume(command, tmp_path, seed):
    """Start, kill -9 at a random point, run again; returns what the two runs left."""
    process = subprocess.Popen(arguments(*command), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = random.Random(seed).randint(1, 20)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if sum(path.read_text().count("\n") for path in (tmp_path / "out").rglob("samples.jsonl")) >= wanted:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return content(tmp_path)
