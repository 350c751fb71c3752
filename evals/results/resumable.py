"""Measure samples one by one, and resume where an earlier run stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from evals.progress import Progress
from evals.results.schema import Line
from evals.results.store import SampleStore

T = TypeVar("T")


def complete(
    folder: Path,
    title: str,
    items: Mapping[str, T],
    line_of: Callable[[T], Mapping[str, Any]],
    progress: Progress,
    of: Mapping[str, str] | None = None,
) -> dict[str, Line]:
    """Return the line of every item by id, in the order of `items`; `line_of` makes the lines that `folder` lacks.

    `line_of` need not set the id. `of` names the owner of the lines, as returned by `lines.owner`. Raises the errors of
    `SampleStore` and `line_of`; finished lines are kept.
    """
    store = SampleStore(folder, of)
    try:
        missing = {id: item for id, item in items.items() if id not in store.lines}
        with progress.track(title, list(missing)) as steps:
            for id in steps:
                store.append({"id": id, **line_of(missing[id])})
        store.check()
        return {id: store.lines[id] for id in items}
    finally:
        store.close()
