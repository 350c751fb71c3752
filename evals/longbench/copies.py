"""Convert LongBench copies of the library `datasets`: folders of `save_to_disk`, parquet files, or hub datasets.

Copies are converted to task.jsonl files in the official format, once for each content. Copies for other tools split the
prompt: in kvpress's copy (Xnhyacinth/LongBench), `context` has the template up to the question, `question` has the
question, and `answer_prefix` has the end of the prompt. The official template is used to recover the official fields.

Every row is compared with the official index by its answers and length, and in the English tasks also by its number of
words. A row that differs gets a number that no official row has, so that it is never scored as an official row.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from compresskv.inputs import read_once
from evals.json_lines import checked_record, field_of
from evals.longbench import archive, official
from evals.longbench.records import Content
from evals.longbench.tasks import ALL, TASKS, Task

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

Row = dict[str, Any]


def is_copy(path: Path) -> bool:
    """Return whether `path` is a parquet file, or a folder with parquet files or the files of `save_to_disk`."""
    if path.is_file():
        return path.suffix == ".parquet"
    return bool(_below(path, "*.parquet") or _below(path, "state.json"))


def convert(path: Path, cache: Path) -> Path:
    """Convert the copy at `path` to a folder of task.jsonl files, once for each content, and return the folder."""
    files = {table: _files(table) for table in _tables(path)}
    digest = hashlib.sha256()
    for table, contents in files.items():
        for name, content in contents.items():
            line = f"{table.parent.name}/{table.name}/{name} {hashlib.sha256(content).hexdigest()}\n"
            digest.update(line.encode())
    target = cache / f"copy-{digest.hexdigest()}"
    if target.is_dir():
        return target
    with archive.new_folder(target) as folder:
        rows: dict[str, list[tuple[str, Row]]] = {}
        for table, contents in files.items():
            for number, row in enumerate(_rows(table, contents)):
                if (name := _task_name(table, row)) in TASKS:
                    rows.setdefault(name, []).append((f"{table}, row {number}", row))
        if not rows:
            raise UserError(
                "eval.data",
                "add a column `task` or `dataset` with the task, or use one folder per task",
                value=path,
                why="no row belongs to a LongBench task",
            )
        for name in ALL:
            if name in rows:
                _write(folder, TASKS[name], rows[name])
    return target


def download(repository: str, revision: str | None = None) -> Path:
    """Return the folder of a hub dataset's data files. Downloads them if missing, or fails within seconds."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    kinds = ["*.parquet", "*.jsonl", "data.zip"]
    options: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "local_files_only": True}
    unreachable = None
    if not constants.HF_HUB_OFFLINE:
        try:
            info = hub.HfApi().dataset_info(repository, revision=revision, timeout=archive.HUB_TIMEOUT)
        except Exception as error:  # many unrelated types; the cache may have an earlier copy
            unreachable = error
        else:
            names = [Path(file.rfilename) for file in info.siblings or []]
            kinds = [kind for kind in kinds if any(name.match(kind) for name in names)][:1]
            options |= {"revision": info.sha, "local_files_only": False}
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=kinds, **options))
    except Exception as error:
        raise UserError(
            "eval.data",
            "give a directory, a zip, hub, or a dataset's id",
            value=repository,
            why=f"not a path, and not available from the hub ({archive.reason(unreachable or error)})",
        ) from error


def _tables(path: Path) -> Iterator[Path]:
    """Yield the parquet files and `save_to_disk` folders at or below `path`; only the test split if one exists."""
    if path.is_file():
        yield path
        return
    saved = [state.parent for state in _below(path, "state.json")]
    for table in sorted([*saved, *_below(path, "*.parquet")]):
        others = {other.name.split("-")[0].split(".")[0] for other in table.parent.iterdir()}
        if table.name.startswith(".") or ("test" in others and not table.name.startswith("test")):
            continue
        yield table


def _below(folder: Path, pattern: str) -> list[Path]:
    """Return matching files at most three folders deep: copies have at most <data>/<task>/<split>/."""
    found: list[Path] = []
    for depth in range(4):
        found += folder.glob("*/" * depth + pattern)
    return found


def _files(table: Path) -> dict[str, bytes]:
    """Read a parquet file, or the files in a `save_to_disk` folder; returns their content by name."""
    if table.is_file():
        return {table.name: read_once(table, "eval.data")}
    return {file.name: read_once(file, "eval.data") for file in sorted(table.iterdir()) if not file.is_dir()}


def _rows(table: Path, contents: Mapping[str, bytes]) -> list[Row]:
    """Parse the rows of the files that `_files` has read."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        if table.name in contents:
            return parquet.read_table(pyarrow.BufferReader(contents[table.name])).to_pylist()
        state = json.loads(contents["state.json"])
        if state.get("_indices_data_files"):
            raise ValueError("it is a selection of rows: call flatten_indices() before you save it")
        rows: list[Row] = []
        for name in [file["filename"] for file in state["_data_files"]]:
            if name not in contents:
                raise ValueError(f"{name} is missing")
            rows += pyarrow.ipc.open_stream(contents[name]).read_all().to_pylist()
        return rows
    except Exception as error:  # many unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            "eval.data", "copy it again", value=table, why=f"cannot be read as a dataset ({reason})"
        ) from error


def _task_name(table: Path, row: Mapping[str, Any]) -> str:
    """Return the task of a row: from its column, or else from the name of the file or folder."""
    for column in ("task", "dataset"):
        if isinstance(row.get(column), str):
            return row[column]
    names = [re.sub(r"(-test)?(-\d+-of-\d+)?$", "", table.stem), *(parent.name for parent in table.parents)]
    return next((name for name in names if name in TASKS), "")


def _write(folder: Path, task: Task, rows: list[tuple[str, Row]]) -> None:
    """Write the rows of a task to its task.jsonl file."""
    contents = [_official_shape(place, row, task) for place, row in rows]
    numbers = official.locate(task.name, [(content.answers, content.length) for content in contents])
    with open(folder / f"{task.name}.jsonl", "x", encoding="utf-8") as file:
        for line, (content, number) in enumerate(zip(contents, numbers, strict=True)):
            if number is None or official.prompt_problem(task, content):
                number = task.n + line
            file.write(json.dumps({"_lb_index": number, **vars(content)}, ensure_ascii=False) + "\n")


def _official_shape(place: str, row: Row, task: Task) -> Content:
    """Convert a row to an official record. Raises `UserError`."""
    row = row | {"all_classes": row.get("all_classes") or None}
    if "input" not in row:
        context, question = (field_of(place, row, name, str) for name in ("context", "question"))
        prefix = field_of(place, row, "answer_prefix", str) if row.get("answer_prefix") is not None else ""
        context, question = _taken_apart(task, context, question, prefix) or (context, question)
        row |= {"context": context, "input": question}
    return checked_record(place, Content, row, needs_classes=task.metric == "classification")


def _taken_apart(task: Task, context: str, question: str, prefix: str) -> tuple[str, str] | None:
    """Return (context, input) of a split prompt; None if the prompt does not match the official template."""
    head, _, rest = task.prompt.partition("{context}")
    middle, placeholder, tail = rest.partition("{input}")
    prompt = context + question + prefix
    if not prompt.startswith(head) or not prompt.endswith(tail if placeholder else rest):
        return None
    if not placeholder:
        return prompt[len(head) : len(prompt) - len(rest)], ""
    for split in range(len(middle), -1, -1):  # how much of `middle` is in `context`
        if context.endswith(middle[:split]) and question.startswith(middle[split:]):
            start = len(context) - split
            return prompt[len(head) : start], prompt[start + len(middle) : len(prompt) - len(tail)]
    return None
