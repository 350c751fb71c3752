"""What an array task does: the group's ordinary command line, so that a kill or a requeue costs one sample."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from submitit.core.utils import DelayedSubmission, UncompletedJobError


@dataclass
class ArrayTask:
    """Runs `commands` in turn. submitit calls it on the node, and `checkpoint` before it requeues the job."""

    commands: Sequence[Sequence[str]]
    _process: subprocess.Popen | None = field(default=None, init=False)
    _ending: bool = field(default=False, init=False)

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, self._told_to_end)
        try:
            failed = [command for command in self.commands if self._run(command)]
        except UncompletedJobError as error:
            print(f"{error} Raise hydra.launcher.time or .requeues; the same command goes on from here.", flush=True)
            os._exit(1)
        # submitit would add its own traceback as the log's last lines, and pickle what nobody reads.
        sys.stdout.flush()
        os._exit(1 if failed else 0)

    def checkpoint(self) -> DelayedSubmission:
        """The same again: finished samples are in the results folder, and no process may hold it any more."""
        if self._process and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            # Not Popen.wait: this is a signal handler, and what it interrupts holds that lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ArrayTask(self.commands))

    def _run(self, command: Sequence[str]) -> int:
        print("$", shlex.join(command), flush=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(command, env=environment, preexec_fn=_ignore_notices)
        code = self._process.wait()
        while code and self._ending:
            # Under preemption SLURM requeues what it ends itself, but not what ends of its own accord.
            signal.pause()
        if code < 0:
            print(f"the command was killed by {signal.Signals(-code).name}", flush=True)
        return code

    def _told_to_end(self, *_: object) -> None:
        self._ending = True


def _ignore_notices() -> None:
    # SLURM sends these to every process of the job; what to do about them is decided above.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
