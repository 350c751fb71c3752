"""One folder a setting: `samples.jsonl` grows by one flushed line a sample, the rest is replaced whole.

A run that is killed loses at most the line it was writing; the next one reads what is there and goes on.
"""

import fcntl
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from compresskv.errors import UserError

Line = dict[str, Any]


class SampleStore:
    """The open folder of one setting. Only one process may hold it; `close` lets go of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "samples.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise refused(folder, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder} is in use by another process: wait for it, or set paths.results") from error
        self.lines = {line["id"]: line for line in self._recover()}
        self._file = self.path.open("a", encoding="utf-8")

    def _recover(self) -> list[Line]:
        """All complete lines; a torn last line is cut off."""
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        end = raw.rfind(b"\n") + 1
        if end < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(end)
        return read_lines(self.path)

    def append(self, line: Line) -> None:
        """Add one sample; when this returns, it survives the process. Raises `UserError` if the disk refuses it."""
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refused(self.folder, error) from error
        self.lines[line["id"]] = line

    def close(self) -> None:
        self._file.close()
        self._lock.close()


def new_folder(parent: Path) -> Path:
    """A folder of one run's own, named by the time. Raises `UserError` if the disk refuses it."""
    for attempt in itertools.count():
        folder = parent / (time.strftime("%Y%m%d-%H%M%S") + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not (isinstance(error, FileExistsError) and parent.is_dir()):
                raise refused(parent, error) from error
    raise AssertionError


def refused(folder: Path, error: OSError) -> UserError:
    """The sentence for a folder that cannot be written."""
    return UserError(
        f"{folder}: cannot be written ({error.strerror}); finished samples are safe: make room or set paths.results, "
        "and run the same command again"
    )


def read_lines(path: Path) -> list[Line]:
    """The samples of a JSONL file, which may be empty. Raises `UserError` naming the file and line of a broken one."""
    lines: list[Line] = []
    if not path.stat().st_size:
        return lines
    # Not `splitlines`: JSON strings may hold other line separators, such as U+2028.
    for number, text in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            line = json.loads(text)
            line["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number}: not a sample's JSON line: delete that line and run again") from error
        lines.append(line)
    return lines


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as JSON, all or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, content: Any) -> None:
    """Replace `path` by `content` as YAML, all or nothing."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, all or nothing. Raises `UserError` if the disk refuses it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise refused(path.parent, error) from error


def close_all(stores: Iterable[SampleStore]) -> None:
    for store in stores:
        store.close()
