"""Run the harness as a user does."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from compresskv.errors import UserError
from evals import command as entry_point
from evals.report import terminal
from evals.results.store import SampleStore
from evals.running import loading

ROOT = Path(__file__).resolve().parents[2]
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Done(subprocess.CompletedProcess):
    """The result of a command. `error`: the `UserError` it raised, if it ran in this process."""

    error: UserError | None = None


class Kept:
    """The files of the model that the last run left loaded."""

    files: tuple[Any, ...] = ()

    @staticmethod
    def now() -> tuple[Any, ...]:
        config = loading._Last.config
        paths = sorted(Path(config.path).glob("*")) if config and config.path else []
        return (config, *((path, os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in paths))


def arguments(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *overrides]


def run(*overrides: str, env: dict[str, str] | None = None, figures: bool = False) -> Done:
    """Run `python run.py …` in this process, which has already imported torch. `run_process` starts a real process.

    The last model stays loaded for the next run, unless its files have changed. Figures of results are drawn on demand.
    """
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    out, err = io.StringIO(), io.StringIO()
    environment = patch.dict(os.environ, env or {})
    command = patch.object(sys, "argv", arguments(*overrides)[1:])
    drawn = nullcontext() if figures else patch.object(terminal, "_drawn", lambda *of: [])
    kept = patch.object(loading._Last, "kept", True)
    GlobalHydra.instance().clear()
    if Kept.files != Kept.now():
        loading._Last.model = None
    error: BaseException | None = None
    try:
        with environment, command, drawn, kept, redirect_stdout(out), redirect_stderr(err):
            entry_point.start()
        code: object = 0
    except SystemExit as ending:
        code, error = ending.code or 0, ending.__context__
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        Kept.files = Kept.now()
    if isinstance(code, str):  # Python prints it when the process exits
        err.write(f"{code}\n")
        code = 1
    done = Done(arguments(*overrides), int(str(code)), out.getvalue(), err.getvalue())
    done.error = error if isinstance(error, UserError) else None
    return done


def run_process(*overrides: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `python run.py …` in a separate process and capture its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(arguments(*overrides), capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)


def folders(tmp_path):
    return sorted(path.parent for path in (tmp_path / "out" / "runs").rglob("samples.jsonl"))


def content(tmp_path):
    """Return all samples and summaries, without fields that may differ between runs: timing, environment, paths."""
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


def assert_alike(found, resumed):
    """Assert equal contents, apart from what a KL divergence differs by between two batches: the noise of kernels.

    A run that was killed between two lines of one prompt reads the prompt again with the settings that are missing.
    """
    kls: list[list[float]] = [[], []]
    for content, numbers in zip((found, resumed), kls, strict=True):
        for _, (lines, _, summary) in sorted(content.items()):
            for _, line in sorted(lines.items()):
                del line["batch"], line["checksum"]
                noisy = [field for field in line if field == "kl" or field.endswith("kl_per_token")]
                numbers += np.hstack([line.pop(field) for field in noisy]).tolist()
            del summary["checksum"]
            numbers += np.hstack(list(summary["fidelity"].pop("kl").values())).tolist()
    assert found == resumed
    assert kls[0] == pytest.approx(kls[1], abs=2e-4)


def samples(results: Path) -> int:
    """Return the number of samples in all folders of results."""
    return sum(path.read_text().count("\n") for path in results.rglob("samples.jsonl"))


def sent_to_child(sent: signal.Signals, command: Sequence[str], tmp_path: Path, after: int) -> tuple[int, str]:
    """Run a command in a child process, which has imported torch, and send it a signal when it has `after` samples.

    Returns the exit code, which is negative after a deadly signal, and what the command said on stderr.
    """
    if not (child := os.fork()):
        append = SampleStore.append

        def counted(store: SampleStore, line: Mapping[str, Any]) -> None:
            append(store, line)
            if samples(tmp_path) == after:
                os.kill(os.getpid(), sent)

        code = 1
        try:
            with patch.object(SampleStore, "append", counted):
                done = run(*command)
            code = done.returncode
            (tmp_path / "said").write_text(done.stderr)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    said = tmp_path / "said"
    return os.waitstatus_to_exitcode(status), said.read_text() if said.exists() else ""


def kill_and_resume(command, tmp_path, after):
    """Start a command, kill -9 it after some samples, and run it again; returns the content that the two runs left."""
    assert sent_to_child(signal.SIGKILL, command, tmp_path, after) == (-signal.SIGKILL, "")
    assert samples(tmp_path) == after
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert samples(tmp_path) > after
    return content(tmp_path)
