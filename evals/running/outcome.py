"""What became of every setting of a sweep: it ran, it was resumed, or it failed, and why."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from compresskv.errors import UserError
from evals.console import plain, screen
from evals.job import Job, Logger
from evals.report import terminal
from evals.results.measurement import Measurement
from evals.results.record import Record
from evals.results.schema import NAMED

State = Literal["ran", "resumed", "incomplete", "failed"]

FAULTY: tuple[State, ...] = ("incomplete", "failed")
"""What a sweep must not end with as if all were well."""


@dataclass(frozen=True)
class Entry:
    """One setting on one task. `note` counts its samples, or says in a sentence why it failed.

    It is incomplete where some of its prompts have no result, as their lines say. A failure that is no mistake of the
    user's has its traceback in `detail`. What tried all samples has its `folder`, and in `samples` their ids; a
    measurement, which has no samples, the file that it has `written`.
    """

    model: str
    eval: str
    task: str
    setting: str
    state: State
    note: str
    detail: str = ""
    folder: str | None = None
    samples: tuple[str, ...] = ()
    written: str | None = None

    def record(self) -> Record:
        """The setting, read from its folder, for the samples that this sweep asked for."""
        folder = Path(self.folder or "")
        return Record(folder, folder.parents[len(NAMED) - 1], tuple(self.samples))

    def measurement(self) -> Measurement:
        """The measurement, read from its file."""
        return Measurement(Path(self.written or ""), self.model, self.eval)


class Outcome:
    """Collects the entries of a sweep while it goes on."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, finished: Sequence[Entry]) -> None:
        """Note settings that tried all their samples."""
        self.entries += finished

    def add_measurement(self, job: Job, written: Path) -> None:
        """Note a run that leaves no samples, but what is `written`."""
        name = job.eval.name
        self.entries.append(Entry(job.model.name, name, "", name, "ran", str(written), written=str(written)))

    def fail(self, jobs: Sequence[Job], error: Exception, task: str = "") -> None:
        """Note jobs that `error` ended. What is not the user's mistake is shown at once, with its traceback."""
        mistake = isinstance(error, UserError)
        detail = "" if mistake else "".join(traceback.format_exception(error))
        sys.stderr.write(detail)
        note = str(error) if mistake else f"{type(error).__name__}: {error}".strip(": ")
        for name, job in {job.name: job for job in jobs}.items():
            self.entries.append(Entry(job.model.name, job.eval.name, task, name, "failed", note, detail))

    @contextmanager
    def guard(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Within it, an error ends these jobs instead of the sweep."""
        try:
            yield
        except Exception as error:
            self.fail(jobs, error)


def show(entries: Sequence[Entry], logger: Logger | None) -> None:
    """Print what became of every setting, then the results of those that have any; send these on to the `logger`.

    Raises `UserError` if any failed or is incomplete; alone, where nothing else can be said than why.
    """
    failures = [entry.note for entry in entries if entry.state in FAULTY]
    records = [record for entry in entries if entry.folder and (record := entry.record()).covered]
    if len(failures) == len(entries) and len(set(failures)) == 1 and not records:
        raise UserError(None, failures[0])
    if len(entries) > 1:
        screen().print(table(entries))
    figures = terminal.show(records)
    if logger:
        logger.log(records, figures)
        logger.log_measurements([entry.measurement() for entry in entries if entry.written])
    if failures:
        faulty = _settings([entry for entry in entries if entry.state in FAULTY])
        raise UserError(
            None,
            "the same command runs only what is missing",
            why=f"{faulty} of {_settings(entries)} settings {_how(entries)} ({failures[0]})",
        )


def _settings(entries: Sequence[Entry]) -> int:
    """How many settings these are, whatever the number of tasks."""
    return len({(entry.model, entry.eval, entry.setting) for entry in entries})


def _how(entries: Sequence[Entry]) -> str:
    """What is wrong with the faulty ones among `entries`."""
    states = {entry.state for entry in entries if entry.state in FAULTY}
    if states == {"failed"}:
        return "failed"
    return "are incomplete" if states == {"incomplete"} else "failed or are incomplete"


def table(entries: Sequence[Entry]) -> Table:
    """One row for the settings of a task that fared alike."""
    shown = Table(title="settings")
    for column in ("model", "task", "outcome", "settings", ""):
        shown.add_column(column)
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for entry in sorted(entries, key=lambda entry: entry.state in FAULTY):
        place = " ".join(dict.fromkeys((entry.eval, entry.task))).strip()
        alike.setdefault((entry.model, place, entry.state, entry.note), []).append(entry.setting)
    for (model, place, state, note), settings in alike.items():
        cells = (model, place, state, ", ".join(settings), note)
        shown.add_row(*map(plain, cells), style="red" if state in FAULTY else "")
    return shown
