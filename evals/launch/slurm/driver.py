"""Submit a sweep's groups to SLURM, follow them, and report their results."""

import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.console import Console

from compresskv.checking import checked
from evals.console import end_interrupted, interrupts_held
from evals.job import Job
from evals.launch.groups import groups
from evals.launch.report import GroupRun, report
from evals.launch.slurm.config import SlurmConfig
from evals.launch.slurm.queue import State, cancel_command, states
from evals.launch.slurm.submit import Submitted, require_slurm, submit


@dataclass(frozen=True)
class Slurm:
    """Runs the groups of a sweep as array tasks; `settings` come from `conf/hydra/launcher/slurm.yaml`."""

    settings: Mapping[str, Any]

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. Raises `UserError` if SLURM refuses the jobs, and at the end if settings failed."""
        config = checked("hydra.launcher", SlurmConfig, self.settings)
        require_slurm()
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        ids: list[str] = []
        try:
            with interrupts_held():  # so that an interrupted driver can print the ids of submitted jobs
                tasks = submit(config, groups(jobs))
                ids = list(dict.fromkeys(task.id for task in tasks))
            console.print(f"submitted {_count(ids)}: {', '.join(ids)}; logs in {tasks[0].log.parent}")
            if config.detach:
                console.print(f"cancel with `{_cancel(ids)}`; `python -m evals results list` shows their progress")
                return
            last = follow(tasks, config.poll, console)
        except KeyboardInterrupt:
            if not ids:
                raise
            _interrupted(ids)
        report([GroupRun(t.group, f"job {t.id}", t.log, str(last[t.id]), t.entries) for t in tasks], console)


def follow(tasks: Sequence[Submitted], poll: float, console: Console) -> dict[str, State]:
    """Wait until all tasks have ended, print changes, and return the last states."""
    before: dict[str, State] = {}
    printed = ""
    while True:
        now = states([task.id for task in tasks])
        news = "squeue does not answer" if now is None else _progress(now)
        if news != printed:
            console.print(f"{time.strftime('%H:%M:%S')} {news}")
            printed = news
        if now is not None:
            # A requeued task may look finished for a moment, and a shared file system may lag behind.
            if all(now[t.id].over and (t.reported or before.get(t.id) == now[t.id]) for t in tasks):
                return now
            before = now
        time.sleep(poll)


def _interrupted(ids: Sequence[str]) -> NoReturn:
    """Ask whether to cancel the jobs of an interrupted driver, then exit."""
    answer = ""
    with suppress(KeyboardInterrupt, EOFError):
        if sys.stdin.isatty():
            answer = input(f"\ncancel {_count(ids)}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        subprocess.run(cancel_command(ids), check=False)
        end_interrupted("cancelled: finished samples are saved; run the same command again to continue")
    end_interrupted(
        f"{_count(ids)} left in the queue: cancel with `{_cancel(ids)}`; the same command shows finished settings"
    )


def _progress(now: Mapping[str, State]) -> str:
    counts = Counter(state.name.lower() for state in now.values())
    reasons = {state.reason for state in now.values() if state.name == "PENDING" and state.reason}
    waiting = f" (pending: {', '.join(sorted(reasons))})" if reasons else ""
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) + waiting


def _cancel(ids: Sequence[str]) -> str:
    return shlex.join(cancel_command(ids))


def _count(ids: Sequence[str]) -> str:
    return "1 job" if len(ids) == 1 else f"{len(ids)} jobs"
