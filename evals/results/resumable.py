"""The loop of everything that is measured sample by sample and goes on where it was ended."""

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
    """The line of every item by its id, in their order; `line_of` makes those that `folder` does not have yet.

    `line_of` need not set the id. `of` says whose the lines are, as `lines.owner` makes it. Raises what `SampleStore`
    and `line_of` raise; finished lines stay.
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
