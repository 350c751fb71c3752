"""What became of every setting of a sweep: it ran, it was resumed, or it failed, and why."""

import dataclasses
import json
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from compresskv.errors import UserError
from evals import report
from evals.console import screen
from evals.job import Job, job_from
from evals.results.record import Record
from evals.results.store import write_json
from evals.runner import Finished


@dataclass(frozen=True)
class Entry:
    """One setting on one task. `note` counts its samples, or says in a sentence why it failed.

    A failure that is no mistake of the user's has its traceback in `detail`; what finished has its `folder`, and in
    `breakdown` the parts of its score.
    """

    model: str
    eval: str
    task: str
    setting: str
    state: str
    note: str
    detail: str = ""
    folder: str | None = None
    breakdown: dict[str, float] = field(default_factory=dict)


class Outcome:
    """Collects the entries of a sweep while it goes on."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.finished: list[Finished] = []

    def add(self, finished: Sequence[Finished]) -> None:
        """Record settings that have all their samples."""
        for item in finished:
            n, resumed, summary = item.summary["n"], item.resumed, item.summary
            self.entries.append(
                Entry(
                    summary["model"],
                    summary["eval"],
                    summary["task"],
                    setting_name(item.job),
                    "resumed" if resumed else "ran",
                    f"{n} samples" + (f", {resumed} of them from before" if resumed else ""),
                    folder=str(item.folder),
                    breakdown=dict(item.breakdown),
                )
            )
            self.finished.append(item)

    def done(self, job: Job, note: str) -> None:
        """Record a job that leaves no samples to report."""
        self.entries.append(Entry(job.model.name, job.eval.name, "", job.eval.name, "ran", note))

    def fail(self, jobs: Sequence[Job], error: Exception, task: str = "") -> None:
        """Record jobs that `error` ended. What is not the user's mistake is shown at once, with its traceback."""
        mistake = isinstance(error, UserError)
        detail = "" if mistake else "".join(traceback.format_exception(error))
        sys.stderr.write(detail)
        note = str(error) if mistake else f"{type(error).__name__}: {error}".strip(": ")
        for name, job in {setting_name(job): job for job in jobs}.items():
            self.entries.append(Entry(job.model.name, job.eval.name, task, name, "failed", note, detail))

    @contextmanager
    def guard(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Within it, an error ends these jobs instead of the sweep."""
        try:
            yield
        except Exception as error:
            self.fail(jobs, error)


def show(entries: Sequence[Entry], finished: Sequence[Finished], mirrored: bool = False) -> None:
    """Print what became of every setting, then the results of those that finished; send these on if a logger is set.

    `mirrored`: those who ran the settings have sent them on already.

    Raises `UserError` if any failed; alone, where nothing else can be said than why.
    """
    failures = [entry.note for entry in entries if entry.state == "failed"]
    if len(failures) == len(entries) and len(set(failures)) == 1:
        raise UserError(failures[0])
    if len(entries) > 1:
        screen().print(table(entries))
    if finished:
        figures = report.show(finished)
        logger = finished[0].job.logger
        if logger["name"] == "wandb" and not mirrored:
            from evals.wandb_mirror import mirror

            mirror(finished, figures, logger)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(entries)} settings failed ({failures[0]}); "
            "the same command runs only what is missing"
        )


def setting_name(job: Job) -> str:
    """How an outcome names a job: method, budget, and the protocol if it is not the default."""
    return f"{job.setting} ({job.protocol.name})" if job.protocol.name != "corrected" else job.setting


def table(entries: Sequence[Entry]) -> Table:
    """One row for the settings of a task that fared alike."""
    shown = Table(title="settings")
    for column in ("model", "task", "outcome", "settings", ""):
        shown.add_column(column)
    alike: dict[tuple[str, ...], list[str]] = {}
    for entry in sorted(entries, key=lambda entry: entry.state == "failed"):
        place = " ".join(dict.fromkeys((entry.eval, entry.task))).strip()
        alike.setdefault((entry.model, place, entry.state, entry.note), []).append(entry.setting)
    for (model, place, state, note), settings in alike.items():
        cells = (model, place, state, ", ".join(settings), note)
        shown.add_row(*map(escape, cells), style="red" if state == "failed" else "")
    return shown


def save(entries: Sequence[Entry], path: Path) -> None:
    """Write the entries to `path`, for whoever started this sweep on another machine."""
    write_json(path, [dataclasses.asdict(entry) for entry in entries])


def load(path: Path) -> list[Entry]:
    """The entries that `save` wrote."""
    return [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def restore(entry: Entry) -> Finished:
    """A finished setting, read back from its folder."""
    folder = Path(entry.folder or "")
    record = Record(folder, folder.parents[5])
    summary = record.summary or {}
    return Finished(job_from(summary["config"]), summary, record.covered, entry.breakdown, folder)


def lost(jobs: Sequence[Job], task: str, note: str, known: Collection[str] = ()) -> list[Entry]:
    """Entries of jobs that ended without saying what became of them, except those settings that are `known`."""
    names = {setting_name(job): job for job in jobs}
    return [
        Entry(job.model.name, job.eval.name, task, name, "failed", note)
        for name, job in names.items()
        if name not in known
    ]
