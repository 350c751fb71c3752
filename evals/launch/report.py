"""Report the groups that ran in separate processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.job import Entry
from evals.launch.groups import Group
from evals.running import outcome

TAIL = 20
"""Number of lines shown from the end of a failed group's details or log."""


@dataclass(frozen=True)
class GroupRun:
    """A group, the name of its runner, its log, how it ended, and its entries (None if it ended without an answer)."""

    group: Group
    runner: str
    log: Path
    end: str
    entries: Sequence[Mapping[str, Any]] | None


def report(runs: Sequence[GroupRun], console: Console) -> None:
    """Show the logs of failed groups, and the outcome of every setting as in `outcome.show`."""
    entries: list[Entry] = []
    for run in runs:
        entries += _entries(run, console)
    # The processes that ran the settings have already sent them to the logger.
    outcome.show(entries, logger=None)


def _entries(run: GroupRun, console: Console) -> list[Entry]:
    """Return the outcomes of the settings of one group. If one failed, print the details or the end of the log."""
    group = run.group
    if run.entries is not None:
        entries = [Entry(**entry) for entry in run.entries]
        details = list(dict.fromkeys(entry.detail for entry in entries if entry.detail))
    else:
        note = f"{run.runner} ended without a result ({run.end})"
        names = dict.fromkeys(job.name for job in group.jobs)
        entries = [Entry(group.model, group.eval, group.unit, name, "failed", note) for name in names]
        details = [_read(run.log)]
    if any(entry.faulty for entry in entries):
        console.rule(f"{group.name}: {run.runner}", style="red")
        console.print(f"log: {run.log}")
        for detail in details:
            console.print("\n".join(detail.splitlines()[-TAIL:]))
    return entries


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else "(the log is missing)"
