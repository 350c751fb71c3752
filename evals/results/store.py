"""One folder a setting: `samples.jsonl` grows by one line per sample, the rest is replaced whole.

A run that is killed loses at most the line it was writing; the next one reads what is there and goes on.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import resource
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from compresskv.errors import NonFiniteError, UserError
from evals.results import lock
from evals.results.lines import decode, encode
from evals.results.provenance import described, environment
from evals.results.schema import Line, dumps, loads

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)

UNFINISHED = re.compile(r"\.(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{16}\.tmp")
"""The name of a file that is being written, with its machine and process; those of older versions do not name them."""

SPARE = 32
"""Open files that are left for whatever else a run opens, such as a folder that is listed, or a figure."""


class SampleStore:
    """The open folder of one setting. Only one process may hold it; `close` lets go of it.

    `lines` are the finished samples by id, `failures` the last lines of those that were tried and have no result. Where
    the folder cannot be written, such as in a results tree that others made, they can still be read: `writable` is
    false, and `append` is refused. `of` is what each line says of whose it is, as `lines.owner` makes it.

    Raises `UserError` if another process writes here, if the disk refuses, or if a line is broken or another setting's.
    """

    def __init__(self, folder: Path, of: Mapping[str, str] | None = None):
        self.folder = folder
        self.path = folder / "samples.jsonl"
        self.of = dict(of or {})
        self.appended = 0
        self._descriptor: int | None = None
        self._refusal = OSError(errno.EBADF, "it is closed")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        except OSError as error:
            if error.errno not in READ_ONLY or not self.path.is_file():
                raise refused(folder, error) from error
            self._refusal = error
        try:
            self.lines = self._recover()
        except BaseException:
            self.close()
            raise

    @property
    def writable(self) -> bool:
        return self._descriptor is not None

    def _open(self) -> int:
        """The descriptor of `path`, locked: the only one that a setting takes."""
        while True:
            descriptor = _descriptor(self.path)
            try:
                self._release = lock.acquire(self.folder, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if _same(self.path, descriptor):
                return descriptor
            self._release()  # it was removed between opening and locking

    def _recover(self) -> dict[str, Line]:
        """All complete lines; a torn last line and unfinished files of a process that was killed are removed."""
        try:
            content = self._content()
            lines = decode(content, self.of)
            for number, whose in lines.foreign.items():
                raise not_its_own(f"{self.path}:{number}", whose)
            for number, fault in lines.faults.items():
                raise UserError(None, "delete that line and run again", why=fault, where=f"{self.path}:{number}")
            if self._descriptor is not None:
                if lines.size < len(content):
                    os.ftruncate(self._descriptor, lines.size)
                for path in self.folder.glob(".*.tmp"):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        self._size = lines.size
        self._described = set(described(lines.by_id.values()))
        self.failures = lines.failures
        return lines.by_id

    def _content(self) -> bytes:
        if self._descriptor is None:
            return self.path.read_bytes()
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one sample, or with an `error` why it has no result; when this returns, it survives the process.

        The line gets `of`, and in its `timing` where it was computed: in full in the first line of each environment.
        Raises `UserError` if the disk refuses it or if the file has been removed or changed by others, and
        `NonFiniteError` if a number in it is not finite. Then the file is as before.
        """
        if line["id"] in self.lines:
            raise ValueError(f"{self.path}: sample {line['id']} is there already")
        if self.of:
            line = {**line, "of": self.of}
        if isinstance(line.get("timing"), dict):
            line = {**line, "timing": {**line["timing"], "environment": self._environment()}}
        try:
            content = encode(line)
        except ValueError as error:
            raise NonFiniteError(
                "model.dtype",
                "set it to float32 or bfloat16",
                why=f"sample {line['id']} has a number that is not finite",
                where=self.path,
            ) from error
        if self._descriptor is None:
            raise refused(self.folder, self._refusal)
        self._check_place()
        try:
            rest = content
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except BaseException as error:
            with contextlib.suppress(OSError):  # if even this fails, `_check_place` refuses whatever comes next
                os.ftruncate(self._descriptor, self._size)
            if isinstance(error, OSError):
                raise refused(self.folder, error) from error
            raise
        self._size += len(content)
        written = loads(content.decode())
        self._described |= described([written]).keys()
        self.failures.pop(line["id"], None)
        (self.failures if "error" in line else self.lines)[line["id"]] = written
        self.appended += 1

    def _environment(self) -> dict[str, Any] | str:
        """Where this process computes: in full, or the key where another line has it in full."""
        here = environment()
        if here["key"] in self._described:
            return str(here["key"])
        return here

    def check(self) -> None:
        """Raise `UserError` unless the file at `path` is the one that is open, with all of `lines` in it."""
        if self._descriptor is not None:
            self._check_place()
            lines = decode(self._content(), self.of)
            if (lines.by_id, lines.failures) != (self.lines, self.failures):
                raise self._changed("changed")

    def _check_place(self) -> None:
        assert self._descriptor is not None
        if not _same(self.path, self._descriptor):
            raise self._changed("removed or replaced")
        if os.fstat(self._descriptor).st_size != self._size:
            raise self._changed("changed")

    def _changed(self, how: str) -> UserError:
        return UserError(
            None,
            "run the same command again for those that are missing",
            value=self.path,
            why=f"it was {how} while this run was writing to it, so finished samples may be gone",
        )

    def close(self) -> None:
        """Let go of the folder. Raises nothing."""
        if self._descriptor is not None:
            self._release()
            self._descriptor = None


def _descriptor(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        _allow_more_files()
        return os.open(path, flags, 0o644)
    if descriptor + SPARE > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        _allow_more_files()
    return descriptor


def _allow_more_files() -> None:
    """As many open files as an unprivileged process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _same(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def close_all(stores: Iterable[SampleStore]) -> None:
    for store in stores:
        store.close()


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


def safe_name(where: str, name: str) -> str:
    """`name`, if it can be that of one folder. `where` is the field it comes from, such as `model.name`.

    Raises `UserError` for a name that would lead elsewhere or that no file system takes.
    """
    fault = ""
    if not name or name.isspace():
        fault = "it is empty"
    elif name.startswith("."):
        fault = "it starts with a dot"
    elif "/" in name or "\\" in name:
        fault = "it has a slash"
    elif not name.isprintable():
        fault = "it has a character that cannot be shown"
    elif len(name.encode()) > 200:
        fault = "it is longer than 200 bytes"
    if fault:
        raise UserError(
            where, "choose another name", value=name, why=f"results cannot have a folder of that name ({fault})"
        )
    return name


def not_its_own(place: str, whose: str) -> UserError:
    """The sentence for a file that belongs to another setting than that of its folder."""
    return UserError(
        None,
        "move the files of both settings back to where they came from, or move this folder out of the results",
        why=f"this is {whose}, not of this folder",
        where=place,
    )


def refused(folder: Path, error: OSError) -> UserError:
    """The sentence for a folder that cannot be written."""
    if error.errno in TOO_MANY_OPEN:
        return UserError(
            "paths.results",
            "raise the limit with `ulimit -n`, or run fewer settings at once",
            value=folder,
            why="too many open files, one for each setting of a task; finished samples are safe",
        )
    return UserError(
        "paths.results",
        "make room or set another folder, and run the same command again",
        value=folder,
        why=f"cannot be written ({error.strerror or error}); finished samples are safe",
    )


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as JSON, all or nothing. Raises `ValueError` for numbers that are not finite."""
    write_text(path, dumps(content, indent=2) + "\n")


def write_yaml(path: Path, content: Any) -> None:
    """Replace `path` by `content` as YAML, all or nothing."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, all or nothing. Raises `UserError` if the disk refuses it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, all or nothing. Raises `UserError` if the disk refuses it.

    What killed processes left of their writes to this folder is removed.
    """
    temporary = path.with_name(f".{_host()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise refused(path.parent, error) from error


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished files: those of a process of this machine that has ended, and of any other after a day."""
    for path in folder.glob(".*.tmp"):
        if (name := UNFINISHED.fullmatch(path.name)) is None:
            continue
        gone = name[1] == _host() and lock.ended(int(name[2]))
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > (5 if gone else 86_400):
                path.unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
