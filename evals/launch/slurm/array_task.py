"""The program of an array task: run its groups one by one. A kill or a requeue loses at most one sample."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, UncompletedJobError

from evals.files import write_json
from evals.launch.worker import Worker


@dataclass
class ArrayTask:
    """Runs groups one by one in one process. submitit calls it on the node, and calls `checkpoint` before a requeue.

    `orders`: for each group, the configurations of its jobs and the file for their outcome.
    """

    orders: Sequence[tuple[Sequence[Mapping[str, Any]], Path]]
    _worker: Worker | None = field(default=None, init=False)
    _ending: bool = field(default=False, init=False)

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, self._told_to_end)
        self._worker = Worker(os.environ, preexec_fn=_ignore_notices)
        try:
            failed = [order for order in self.orders if self._run(*order)]
        except UncompletedJobError as error:
            print(f"{error} Increase hydra.launcher.time or .requeues, and run the same command again.", flush=True)
            os._exit(1)
        # Exit here: submitit would append its own traceback to the log and pickle a result that nothing reads.
        sys.stdout.flush()
        os._exit(1 if failed else 0)

    def checkpoint(self) -> DelayedSubmission:
        """Return the same task for the requeue, after killing the process, so that it releases its folders."""
        process = self._worker.process if self._worker else None
        if process and process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            # Not Popen.wait: this is a signal handler, and the interrupted code may hold the lock of `wait`.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ArrayTask(self.orders))

    def _run(self, configs: Sequence[Mapping[str, Any]], outcome: Path) -> int:
        assert self._worker is not None
        print(f"group of {len(configs)} settings, outcome: {outcome}", flush=True)
        answer = self._worker.run(configs, None, _to_log)
        while answer.code and self._ending:
            # Wait to be ended: under preemption, SLURM does not requeue tasks that end by themselves.
            signal.pause()
        if answer.code < 0:
            print(f"the group was killed by {signal.Signals(-answer.code).name}", flush=True)
        if answer.entries is not None:
            write_json(outcome, answer.entries)
        return answer.code

    def _told_to_end(self, *_: object) -> None:
        self._ending = True


def _to_log(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _ignore_notices() -> None:
    # SLURM sends these signals to every process of the job; `ArrayTask` decides how to react.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
