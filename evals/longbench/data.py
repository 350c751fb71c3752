"""LongBench records from a directory of task.jsonl files, a zip, a copy of the library `datasets`, or the hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from compresskv.folders import cache_folder
from compresskv.inputs import expanded, read_once
from evals.longbench import archive, copies, official
from evals.longbench.records import (
    answers_field,
    classes_field,
    data_files,
    integer,
    length_field,
    read_jsonl,
    text_field,
)
from evals.longbench.tasks import Task

REQUIRED_FIELDS = ("input", "context", "answers", "all_classes", "length")


@dataclass(frozen=True)
class Record:
    """One LongBench row. `row` is its number in the official file, and the sample id; `length` is in words.

    `problem`: why it is not the official row of that number; "" if nothing speaks against it.
    """

    row: int
    input: str
    context: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int
    problem: str = field(default="", compare=False)


def default_cache() -> Path:
    """Where archives are unpacked: the folder longbench/ of the project's cache."""
    return cache_folder() / "longbench"


def open_source(
    source: str | Path,
    *,
    cache: Path | None = None,
    sha256: str | None = None,
    repository: str = archive.HUB_REPOSITORY,
    revision: str | None = None,
) -> Path:
    """The folder of task.jsonl files behind `source`: "hub", a zip, a directory, or the id of a hub dataset.

    A directory may also look like the hub's repository or its unpacked zip: a data.zip, or the files in data/. It may
    hold a copy of the library `datasets`, which is converted (`copies`), as a parquet file is. `sha256` is what an
    archive must have; for "hub" at the pinned revision it is known and always checked.
    """
    cache = cache or default_cache()
    if str(source) == "hub":
        revision = revision or archive.HUB_REVISION
        if sha256 is None and revision == archive.HUB_REVISION:
            sha256 = archive.HUB_SHA256
        return archive.unpack(archive.download(repository, revision), cache, sha256)
    path = expanded(source, "eval.data")
    if not path.exists():
        if not copies.HUB_ID.fullmatch(str(source)):
            raise UserError(
                "eval.data",
                "give a directory of task.jsonl files, a zip, or hub",
                value=path,
                why="there is no such file",
            )
        path = copies.download(str(source), revision)
    folder = _open_path(path, cache, sha256)
    if folder is None:
        raise UserError(
            "eval.data",
            "give a directory of task.jsonl files, a zip, or hub",
            value=path,
            why="it has no task.jsonl file and no data.zip",
        )
    return folder


def _open_path(path: Path, cache: Path, sha256: str | None) -> Path | None:
    if not path.is_dir() and not copies.is_copy(path):
        return archive.unpack(path, cache, sha256)
    folders = [folder for folder in (path, path / "data") if folder.is_dir() and data_files(folder)]
    if not folders and (path / "data.zip").is_file():
        return archive.unpack(path / "data.zip", cache, sha256)
    if sha256:
        raise UserError(
            "eval.sha256", "leave it out", value=sha256, why=f"it is that of an archive, and {path} is not one"
        )
    if folders:
        return folders[0]
    return copies.convert(path, cache) if copies.is_copy(path) else None


def refuse_missing(folder: Path, tasks: Sequence[Task]) -> None:
    """Raise `UserError` that names all of `tasks` which `folder` has no file of."""
    missing = [task.name for task in tasks if not (folder / f"{task.name}.jsonl").exists()]
    if missing:
        files = ", ".join(f"{name}.jsonl" for name in missing)
        fix = f"leave {', '.join(missing)} out, or add what is missing"
        raise UserError(
            "eval.tasks",
            fix,
            value=missing[0] if len(missing) == 1 else missing,
            why=f"there is no {files} in {folder}",
        )


def read_task(folder: Path, task: Task) -> bytes:
    """The content of `folder`/task.jsonl."""
    refuse_missing(folder, [task])
    return read_once(folder / f"{task.name}.jsonl", "eval.data")


def load_task(folder: Path, task: Task, limit: int | None = None, content: bytes | None = None) -> list[Record]:
    """The records of `folder`/task.jsonl in file order, the first `limit` of them if given; `content`: what it holds.

    A row's number is its `_lb_index` where it has one, else that of the official row with its content, else its line
    number from 0; whole files are read, so that no number depends on `limit`. Raises `UserError`, with file and line,
    for a missing or empty file, a corrupt line, a missing or ill-typed field, and a row number that occurs twice.
    """
    if limit is not None and limit < 1:
        raise UserError("eval.limit", "choose at least 1", value=limit)
    content = read_task(folder, task) if content is None else content
    places, claims, records = [], [], []
    for line, (place, fields) in enumerate(read_jsonl(folder / f"{task.name}.jsonl", content)):
        records.append(_record(place, fields, task, line))
        claims.append(records[-1].row if "_lb_index" in fields else None)
        places.append(place)
    numbers = _row_numbers(task, claims, records)
    seen: set[int] = set()
    for place, number in zip(places, numbers, strict=True):
        if number in seen:
            raise UserError(
                "_lb_index", "give each row a number of its own", value=number, why="it occurs twice", where=place
            )
        seen.add(number)
    numbered = [replace(record, row=number) for record, number in zip(records, numbers, strict=True)]
    # The text of the pinned archive is checked already, by its sha256.
    text = folder.name != archive.HUB_SHA256
    return [replace(record, problem=official.row_problem(task, record, text)) for record in numbered[:limit]]


def _record(place: str, fields: dict[str, Any], task: Task, line: int) -> Record:
    for name in REQUIRED_FIELDS:
        if name not in fields:
            raise UserError(name, "add it", why="the record has no such field", where=place)
    return Record(
        row=integer(place, "_lb_index", fields.get("_lb_index", line)),
        input=text_field(place, fields, "input"),
        context=text_field(place, fields, "context"),
        answers=answers_field(place, fields),
        all_classes=classes_field(place, fields, needed=task.metric == "classification"),
        length=length_field(place, fields),
    )


def _row_numbers(task: Task, claims: Sequence[int | None], records: Sequence[Record]) -> list[int]:
    """Each record's row: the claimed one, the official row of its content, or the line; past the official ones where
    an official row has the number of that line."""
    located = official.locate(task.name, [(record.answers, record.length) for record in records])
    official_rows = {official_row for official_row, claim in zip(located, claims, strict=True) if claim is None}
    numbers = []
    for line, (claim, official_row) in enumerate(zip(claims, located, strict=True)):
        other = line if line not in official_rows else task.n + line
        numbers.append(next(number for number in (claim, official_row, other) if number is not None))
    return numbers
