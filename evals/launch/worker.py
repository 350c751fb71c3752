"""A process that runs groups of jobs one by one and keeps the last model. `Worker` starts it and sends the groups.

An order is one line of JSON on stdin: the `configs` of the jobs, and the `log` for their output. The answer is one line
of JSON on stdout: the `entries` of the jobs (null if they did not finish) and the exit `code`. Progress and errors go
to stderr.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

COMMAND = (sys.executable, "-P", "-m", "evals.launch.worker")  # -P: import nothing from the current folder


@dataclass(frozen=True)
class Answer:
    """The outcome of a group's jobs. `code`: its exit code, or minus the signal that killed the process."""

    code: int
    entries: Sequence[Mapping[str, Any]] | None = None


class Worker:
    """Runs groups in one process, which is started for the first group and again after it was killed.

    `start`: further arguments of `Popen`.
    """

    def __init__(self, environment: Mapping[str, str], command: Sequence[str] = COMMAND, **start: Any) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        self._environment = {**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
        self._command, self._options = command, start
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        """Return the process, starting it if it is not running."""
        if self.process is None:
            pipe, given = subprocess.PIPE, self._options
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe, **given
            )
        return self.process

    def run(self, configs: Sequence[Mapping[str, Any]], log: Path | None, passed_on: Callable[[bytes], None]) -> Answer:
        """Run the jobs, with their output appended to `log` or passed on with each line of stderr to `passed_on`."""
        process = self.start()
        assert process.stdin
        try:
            process.stdin.write(json.dumps({"configs": configs, "log": log and str(log)}).encode() + b"\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the process has ended since the last group; reading its answer below detects this
        answer = _followed(process, passed_on)
        if answer is None:
            self.process = None
            return Answer(process.wait() or -signal.SIGKILL)  # it never ends by itself, so code 0 counts as killed
        if answer["code"] > 128:  # ended by a signal
            self.end()
        return Answer(**answer)

    def end(self) -> None:
        """End the process while it waits for the next group."""
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()
            self.process = None


def _followed(process: subprocess.Popen, passed_on: Callable[[bytes], None]) -> dict[str, Any] | None:
    """Pass on stderr until the process answers; return the answer, or None if the process ends without one."""
    assert process.stdout
    assert process.stderr
    answers, errors = process.stdout.fileno(), process.stderr.fileno()
    os.set_blocking(errors, False)
    rest = b""

    def drained() -> bool:
        """Pass on all lines that can be read, and return whether stderr is closed."""
        nonlocal rest
        try:
            while chunk := os.read(errors, 1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    passed_on(line + b"\n")
        except BlockingIOError:
            return False
        return True

    with selectors.DefaultSelector() as pipes:
        pipes.register(answers, selectors.EVENT_READ)
        pipes.register(errors, selectors.EVENT_READ)
        ready: list[int] = []
        while answers not in ready:
            ready = [key.fd for key, _ in pipes.select()]
            if errors in ready and drained():
                pipes.unregister(errors)
    line = process.stdout.readline()
    drained()  # the answer comes after all output of the group
    if rest:
        passed_on(rest)
    return json.loads(line) if line.endswith(b"\n") else None


def main() -> None:
    """Answer the orders on stdin until it is closed."""
    from evals.console import outputs_never_fail
    from evals.running.loading import keep_last_model

    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    outputs_never_fail()
    keep_last_model()
    for line in orders:
        order = json.loads(line)
        if order["log"]:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 1)
            os.close(log)
        answer = answered(order["configs"])
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(2, 1)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def answered(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run the jobs of these configurations, print their report, and return the answer."""
    answer: dict[str, Any] = {"code": 0, "entries": None}
    try:
        from evals.console import one_sentence_endings, signals_as_interrupts
        from evals.launch.groups import sweep_jobs
        from evals.running import outcome, sweep

        with one_sentence_endings():
            jobs = sweep_jobs(configs)
            signals_as_interrupts()
            entries = sweep.entries_of(jobs)
            answer["entries"] = [asdict(entry) for entry in entries]
            outcome.show(entries, jobs[0].logger)
    except SystemExit as ending:
        answer["code"] = ending.code if isinstance(ending.code, int) else 1
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        answer["code"] = 1
    return answer


if __name__ == "__main__":
    main()
