"""Query and cancel jobs with SLURM's commands. No accounting database is needed."""

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

GONE = "no longer in the queue"
"""State of a job that squeue no longer lists: SLURM forgets a finished job after its MinJobAge."""

OVER = {GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
OVER |= {"PREEMPTED", "REVOKED", "TIMEOUT"}
"""States of jobs that have ended. SLURM may still requeue a job that was preempted or lost its node."""


@dataclass(frozen=True)
class State:
    """A job's state and SLURM's reason for it, as printed by squeue."""

    name: str
    reason: str = ""

    @property
    def over(self) -> bool:
        return self.name in OVER

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def states(ids: Collection[str]) -> dict[str, State] | None:
    """Return the state of each job; None if SLURM does not answer."""
    arrays = ",".join(sorted({id.split("_")[0] for id in ids}))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T|%r"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if completed.returncode and "Invalid job id" not in completed.stderr:
        return None
    rows = (line.split("|", 2) for line in completed.stdout.splitlines() if line.count("|") >= 2)
    seen = {id: State(name, "" if reason == "None" else reason) for id, name, reason in rows}
    return {id: seen.get(id, State(GONE)) for id in ids}


def cancel_command(ids: Collection[str]) -> Sequence[str]:
    """Return the command that cancels these jobs."""
    return ["scancel", *sorted({id.split("_")[0] for id in ids})]
