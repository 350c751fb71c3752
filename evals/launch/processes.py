"""Groups in processes of their own: the command lines they run, the files they leave, and one report of them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from evals.compose import quoted
from evals.launch.groups import Group
from evals.running import outcome

TAIL = 20
"""Lines of a failed group's log that are shown."""


@dataclass(frozen=True)
class GroupRun:
    """A group and who runs it, where that logs to, and the files that its command lines write when they end."""

    group: Group
    runner: str
    log: Path
    outcomes: tuple[Path, ...]

    @property
    def reported(self) -> bool:
        return all(path.exists() for path in self.outcomes)


def command_lines(command: Sequence[str], group: Group, folder: Path, number: int) -> dict[Path, list[str]]:
    """What runs the `number`th group of a sweep: command lines by the outcome file in `folder` that each writes.

    `command` is the ordinary command line up to what tells one group from another.
    """
    outcomes = [folder / f"outcome-{number}-{i}.json" for i in range(len(group.sweeps))]
    return {
        path: [*command, f"hydra.launcher.outcome={quoted(path)}", *sweep]
        for path, sweep in zip(outcomes, group.sweeps, strict=True)
    }


def report(runs: Sequence[GroupRun], ends: Sequence[str], console: Console, outcome_file: Path | None = None) -> None:
    """Show what became of every setting, the log of every group that failed, and the results of what finished.

    `ends` says how each run ended; `outcome_file` gets what became of every setting. Raises `UserError` if any failed.
    """
    entries: list[outcome.Entry] = []
    for run, end in zip(runs, ends, strict=True):
        entries += _entries(run, end, console)
    if outcome_file:
        outcome.save(entries, outcome_file)
    # The processes that ran the settings have sent them to the logger already.
    outcome.show(entries, logger=None)


def _entries(run: GroupRun, end: str, console: Console) -> list[outcome.Entry]:
    """What became of the settings of one group; where one failed, its log is shown."""
    entries: list[outcome.Entry] = []
    for path in run.outcomes:
        if path.exists():
            entries += outcome.load(path)
    details = dict.fromkeys(entry.detail for entry in entries if entry.detail)
    if not run.reported:
        note = f"{run.runner} ended without a result ({end})"
        known = {entry.setting for entry in entries}
        entries += outcome.without_outcome(run.group.jobs, run.group.unit, note, known)
        details[_read(run.log)] = None
    if any(entry.state in outcome.FAULTY for entry in entries):
        console.rule(f"{run.group.name}: {run.runner}", style="red")
        console.print(f"log: {run.log}")
        for detail in details:
            console.print("\n".join(detail.splitlines()[-TAIL:]))
    return entries


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else "(the log was never written)"
