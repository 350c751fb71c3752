"""A process that runs command lines of the harness in turn, as `Worker` sends them; it keeps the last model."""

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

END = "\0the command line ended with code "
"""What the process writes to stderr, with the code, after all that a command line has written."""

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """Runs command lines in one process, which is started for the first and again after it was killed.

    `environment` replaces that of this process; `start` are further arguments of `Popen`.
    """

    def __init__(self, environment: Mapping[str, str], **start: Any) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        self._environment = {**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        self._start = start
        self._process: subprocess.Popen | None = None

    @property
    def process(self) -> subprocess.Popen | None:
        """The process, while there is one."""
        return self._process

    def start(self) -> None:
        """Start the process if there is none."""
        if self._process is None:
            command = [sys.executable, "-m", "evals.launch.worker"]
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **self._start
            )

    def run(self, script: Sequence[str], output: Path | None, passed_on: Callable[[bytes], None]) -> int:
        """Run a script with its arguments; returns its exit code, or minus the signal that killed the process.

        What it writes to stdout is appended to `output`, or goes where this process writes; `passed_on` gets each line
        of stderr.
        """
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        order = {"script": list(script), "output": None if output is None else str(output)}
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it was killed, or told to end, since the last command line: its stderr has an end
        for line in process.stderr or ():
            if line.startswith(END.encode()):
                return int(line[len(END) :])
            passed_on(line)
        self._process = None
        return process.wait() or -signal.SIGKILL  # it does not end of its own accord

    def end(self) -> None:
        """Let the process end, which waits for the next command line."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()
            self._process = None


def main() -> None:
    """Run what stdin has: a JSON object a line."""
    from evals.running.loading import keep_last_model

    keep_last_model()
    orders = os.fdopen(os.dup(0))
    stdout = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in orders:
        order = json.loads(line)
        if order["output"] is not None:
            file = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(file, 1)
            os.close(file)
        code = ended(order["script"])
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stdout, 1)
        os.write(2, f"{END}{code}\n".encode())


def ended(script: Sequence[str]) -> int:
    """Run a script as Python does, and return its exit code."""
    sys.argv = list(script)
    try:
        runpy.run_path(script[0], run_name="__main__")
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return 1
        return int(ending.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
