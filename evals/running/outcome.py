"""Report the outcome of a sweep: the state of every setting, then the results."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from compresskv.errors import UserError
from evals.console import plain, screen
from evals.job import Entry, Logger
from evals.report import terminal
from evals.results.measurement import Measurement
from evals.results.record import Record
from evals.results.schema import NAMED


def record_of(entry: Entry) -> Record:
    """Return the record of a setting's folder, restricted to the samples of its sweep."""
    folder = Path(entry.folder or "")
    return Record(folder, folder.parents[len(NAMED) - 1], tuple(entry.samples))


def show(entries: Sequence[Entry], logger: Logger | None) -> None:
    """Print the outcome of every setting, then all results, and send the results to the `logger`.

    Raises `UserError` if a setting failed or is incomplete. If all settings failed for the same reason and nothing has
    results, it raises this reason and prints nothing.
    """
    failures = [entry.note for entry in entries if entry.faulty]
    records = [record for entry in entries if entry.folder and (record := record_of(entry)).covered]
    if len(failures) == len(entries) and len(set(failures)) == 1 and not records:
        raise UserError(None, failures[0])
    if len(entries) > 1:
        screen().print(table(entries))
    figures = terminal.show(records)
    if logger:
        logger.log(records, figures)
        logger.log_measurements(
            [Measurement(Path(entry.written), entry.model, entry.eval) for entry in entries if entry.written]
        )
    if failures:
        # Each setting counts once for all its tasks.
        settings = {(entry.model, entry.eval, entry.setting): None for entry in entries}
        faulty = {(entry.model, entry.eval, entry.setting): None for entry in entries if entry.faulty}
        states = {entry.state for entry in entries}
        how = [said for state, said in (("failed", "failed"), ("incomplete", "are incomplete")) if state in states]
        why = f"{len(faulty)} of {len(settings)} settings {' or '.join(how)} ({failures[0]})"
        raise UserError(None, "run the same command again for the missing samples", why=why)


def table(entries: Sequence[Entry]) -> Table:
    """Return a table with one row for all settings and tasks of an evaluation that have the same outcome."""
    shown = Table(title="settings")
    for column in ("model", "task", "outcome", "settings", ""):
        shown.add_column(column)
    alike: dict[tuple[str, str, str, str, bool], dict[str, list[str]]] = {}  # the settings of each task
    for entry in sorted(entries, key=lambda entry: entry.faulty):
        same = (entry.model, entry.eval, entry.state, entry.note, entry.faulty)
        alike.setdefault(same, {}).setdefault(entry.task, []).append(entry.setting)
    for (model, kind, state, note, faulty), by_task in alike.items():
        tasks: dict[tuple[str, ...], list[str]] = {}
        for task, settings in by_task.items():
            tasks.setdefault(tuple(settings), []).append(task)
        for named, of_tasks in tasks.items():
            place = " ".join(dict.fromkeys((kind, ", ".join(of_tasks)))).strip()
            cells = (model, place, state, ", ".join(named), note)
            shown.add_row(*map(plain, cells), style="red" if faulty else "")
    return shown
