"""Open the folder of a setting and append one line per sample to `samples.jsonl`.

A run that is killed loses at most the line it was writing. The next run reads the finished lines and continues.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compresskv.errors import NonFiniteError, UserError
from evals.files import loads, refused
from evals.results import lock
from evals.results.lines import decode, encode
from evals.results.provenance import described, environment
from evals.results.schema import Line

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

SPARE = 32
"""Number of open files reserved for other uses, such as listing a folder or saving a figure."""


class SampleStore:
    """The open folder of one setting. Only one process can hold it; `close` releases it.

    `lines` are the finished samples by id, and `failures` the last lines of failed samples without a result. A folder
    that is not writable, such as in another user's results tree, can still be read: `writable` is false, and `append`
    raises. `of` is written to each line to name its owner, as returned by `lines.owner`.

    Raises `UserError` if another process writes here, if writing fails, or if a line is invalid or belongs to another
    setting.
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
        """Open and lock `path`, and return its descriptor. A setting uses only this descriptor."""
        while True:
            descriptor = _descriptor(self.path)
            try:
                self._release = lock.acquire(self.folder, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if _same(self.path, descriptor):
                return descriptor
            self._release()  # the file was removed between opening and locking

    def _recover(self) -> dict[str, Line]:
        """Return all complete lines. If writable, remove an incomplete last line and leftover temporary files."""
        try:
            content = self._content()
            lines = decode(content, self.of)
            for whose, (number, *_) in lines.foreign.items():
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
        """Append the line of one sample, or of a failed one with an `error`, and flush it to disk.

        The line gets `of`, and its `timing` gets the environment: in full in the first line of each environment, else
        its key. Raises `UserError` if writing fails or if the file was removed or changed by others, and
        `NonFiniteError` if a number in it is not finite. After an error, the file is as before.
        """
        if line["id"] in self.lines:
            raise ValueError(f"{self.path} already has sample {line['id']}")
        if self.of:
            line = {**line, "of": self.of}
        if isinstance(line.get("timing"), dict):
            here = environment()
            named = here["key"] if here["key"] in self._described else here
            line = {**line, "timing": {**line["timing"], "environment": named}}
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
            with contextlib.suppress(OSError):  # if this fails too, `_check_place` raises at the next call
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

    def check(self) -> None:
        """Raise `UserError` unless the file at `path` is the open file and still holds `lines` and `failures`."""
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
            "run the same command again for the missing samples",
            value=self.path,
            why=f"it was {how} while this run was writing to it, so finished samples may be gone",
        )

    def close(self) -> None:
        """Release the folder. Raises nothing."""
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
    """Raise the limit on open files to the maximum allowed without privileges."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _same(path: Path, descriptor: int) -> bool:
    """Return whether `path` is the file that is open as `descriptor`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def not_its_own(place: str, whose: str) -> UserError:
    """Return the error for a file that does not belong to the setting of its folder."""
    return UserError(
        None,
        "move the files of both settings back to their folders, or move this folder out of the results",
        why=f"this is {whose}, not of this folder",
        where=place,
    )
