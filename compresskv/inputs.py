"""Read external files exactly once, so that the bytes that are parsed are the bytes that are hashed."""

import hashlib
import os
import select
import stat
import time
from pathlib import Path

from compresskv.errors import UserError

LARGEST = 1 << 30
"""Size in bytes of the largest file that is read whole."""

SILENCE, PATIENCE = 30.0, 600.0
"""Timeouts in seconds for a pipe: without new data, and for all of its data."""

_BLOCK = 1 << 20

_drained: dict[tuple[int, ...], bytes] = {}
"""Contents of the pipes that this process has read, by device, inode and time of the last write."""

_spoiled: set[tuple[int, ...]] = set()
"""Pipes that timed out after a part of their data was read. They cannot be read again."""


def expanded(path: str | Path, field: str) -> Path:
    """Replace a leading `~` or `~user` in the path with that user's home. `field` is the setting that gives the path.

    Raises `UserError` if the home is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            field, "give the whole path", value=path, why=f"the home directory of {Path(path).parts[0]} is unknown"
        ) from error


def fingerprint(content: str | bytes) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of a content. Text is encoded as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def read_once(path: Path, field: str | None) -> bytes:
    """Return the content of a file or a pipe. A pipe that was read before returns the same content.

    `field` is the setting that gives the path, such as eval.data, or None. Raises `UserError` for a file that cannot be
    read, a directory, a device or a socket, more than `LARGEST` bytes, and a pipe that times out.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait for a pipe's writer
    except (OSError, ValueError) as error:
        raise _unreadable(path, field, error) from error
    try:
        state = os.fstat(descriptor)
        if stat.S_ISFIFO(state.st_mode):
            return _from_pipe(descriptor, path, field)
        if stat.S_ISDIR(state.st_mode):
            raise UserError(field, "give a file", value=path, why="cannot be read (it is a directory)")
        if not stat.S_ISREG(state.st_mode):
            raise UserError(field, "give a file", value=path, why="cannot be read (it is a device)")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1) if state.st_size <= LARGEST else None
        if content is None or len(content) > LARGEST:  # the file may have grown in the meantime
            raise _too_large(path, field)
        return content
    except OSError as error:
        raise _unreadable(path, field, error) from error
    finally:
        os.close(descriptor)


def _from_pipe(descriptor: int, path: Path, field: str | None) -> bytes:
    *name, _ = before = _state(descriptor)
    if before in _drained:
        return _drained[before]
    if tuple(name) in _spoiled:
        raise UserError(field, "write its data again, or give a file", value=path, why="an earlier read was incomplete")
    content = bytearray()
    _spoiled.add(tuple(name))
    poll, end = select.poll(), time.monotonic() + PATIENCE
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while poll.poll(1000 * max(0.0, min(SILENCE, end - time.monotonic()))):
        if not (block := os.read(descriptor, _BLOCK)):
            _spoiled.discard(tuple(name))
            return _drained.setdefault(_state(descriptor), bytes(content))
        content += block
        if len(content) > LARGEST:
            raise _too_large(path, field)
    if not content:
        _spoiled.discard(tuple(name))
    raise UserError(
        field,
        "write to the pipe and close it, or give a file",
        value=path,
        why=f"the pipe had no data for {SILENCE:g} seconds, or no end after {PATIENCE:g} seconds",
    )


def _state(descriptor: int) -> tuple[int, ...]:
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino, state.st_mtime_ns


def _too_large(path: Path, field: str | None) -> UserError:
    return UserError(field, "give a smaller file", value=path, why=f"larger than the limit of {LARGEST >> 20} MiB")


def _unreadable(path: Path, field: str | None, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(field, "check the path", value=path, why=f"cannot be read ({reason})")
