"""Load LongBench records from a directory of task.jsonl files, a zip, a `datasets` copy, or the hub."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compresskv.errors import UserError
from compresskv.folders import cache_folder
from compresskv.inputs import expanded, read_once
from evals.json_lines import Count, checked_record, field_of, read_jsonl
from evals.longbench import archive, copies, official
from evals.longbench.records import Content, Row, data_files
from evals.longbench.tasks import Task

SOURCES = "give a directory of task.jsonl files, a zip, or hub"


def open_source(
    source: str | Path,
    *,
    cache: Path | None = None,
    sha256: str | None = None,
    repository: str = archive.HUB_REPOSITORY,
    revision: str | None = None,
) -> Path:
    """Return the folder of task.jsonl files for `source`: "hub", a zip, a directory, or the id of a hub dataset.

    A directory may also be laid out as the hub repository or the unpacked zip: with a data.zip, or with the files in
    data/. A copy of the library `datasets` and a parquet file are converted (`copies`). `sha256`: the checksum of an
    archive; "hub" at the pinned revision is always checked against its known checksum. Raises `UserError`.
    """
    cache = cache or cache_folder() / "longbench"
    if str(source) == "hub":
        revision = revision or archive.HUB_REVISION
        if sha256 is None and revision == archive.HUB_REVISION:
            sha256 = archive.HUB_SHA256
        return archive.unpack(archive.download(repository, revision), cache, sha256)
    path = expanded(source, "eval.data")
    if not path.exists():
        if not copies.HUB_ID.fullmatch(str(source)):
            raise UserError("eval.data", SOURCES, value=path, why="file not found")
        path = copies.download(str(source), revision)
    folder = _open_path(path, cache, sha256)
    if folder is None:
        raise UserError("eval.data", SOURCES, value=path, why="it has no task.jsonl file and no data.zip")
    return folder


def _open_path(path: Path, cache: Path, sha256: str | None) -> Path | None:
    if not path.is_dir() and not copies.is_copy(path):
        return archive.unpack(path, cache, sha256)
    folders = [folder for folder in (path, path / "data") if folder.is_dir() and data_files(folder)]
    if not folders and (path / "data.zip").is_file():
        return archive.unpack(path / "data.zip", cache, sha256)
    if sha256:
        raise UserError(
            "eval.sha256",
            "leave it out",
            value=sha256,
            why=f"only archives have a sha256, and {path} is not an archive",
        )
    if folders:
        return folders[0]
    return copies.convert(path, cache) if copies.is_copy(path) else None


def refuse_missing(folder: Path, tasks: Sequence[Task]) -> None:
    """Raise `UserError` that lists all `tasks` without a file in `folder`."""
    if missing := [task.name for task in tasks if not (folder / f"{task.name}.jsonl").exists()]:
        files, value = ", ".join(f"{name}.jsonl" for name in missing), missing[0] if len(missing) == 1 else missing
        fix = f"leave {', '.join(missing)} out, or add the files"
        raise UserError("eval.tasks", fix, value=value, why=f"{folder} has no {files}")


def read_task(folder: Path, task: Task) -> bytes:
    """Read the content of `folder`/task.jsonl. Raises `UserError` if the file is missing."""
    refuse_missing(folder, [task])
    return read_once(folder / f"{task.name}.jsonl", "eval.data")


def load_task(folder: Path, task: Task, limit: int | None = None, content: bytes | None = None) -> list[Row]:
    """Load the first `limit` records of `folder`/task.jsonl in file order. `content`: the file's bytes if already read.

    A row's number is its `_lb_index` if present, else the number of the official row with the same content, else its
    line number from 0. The whole file is read, so that numbers do not depend on `limit`.
    """
    if limit is not None and limit < 1:
        raise UserError("eval.limit", "choose at least 1", value=limit)
    content = read_task(folder, task) if content is None else content
    places: list[str] = []
    claims: list[int | None] = []
    contents: list[Content] = []
    for place, given in read_jsonl(folder / f"{task.name}.jsonl", content):
        places.append(place)
        contents.append(checked_record(place, Content, given, needs_classes=task.metric == "classification"))
        claims.append(field_of(place, given, "_lb_index", Count) if "_lb_index" in given else None)
    rows: dict[int, Row] = {}
    for place, content_of_row, number in zip(places, contents, _row_numbers(task, claims, contents), strict=True):
        if number in rows:
            fix = "give each row a different number"
            raise UserError("_lb_index", fix, value=number, why="it occurs twice", where=place)
        rows[number] = Row(**vars(content_of_row), row=number)
    # The texts of the pinned archive have already been checked by its sha256.
    text = folder.name != archive.HUB_SHA256
    chosen = list(rows.values())[:limit]
    return [replace(row, problem=official.row_problem(task, row, text)) for row in chosen]


def _row_numbers(task: Task, claims: Sequence[int | None], contents: Sequence[Content]) -> list[int]:
    """Return each record's row number: the claimed one, the official row with its content, or the line number.

    If an official row in the file has that line number, the record gets a number after all official rows.
    """
    located = official.locate(task.name, [(content.answers, content.length) for content in contents])
    official_rows = {official_row for official_row, claim in zip(located, claims, strict=True) if claim is None}
    numbers = []
    for line, (claim, official_row) in enumerate(zip(claims, located, strict=True)):
        other = line if line not in official_rows else task.n + line
        numbers.append(next(number for number in (claim, official_row, other) if number is not None))
    return numbers
