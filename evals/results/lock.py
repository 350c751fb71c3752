"""Allow one writer per folder with a lock on `samples.jsonl`, which the system releases when the process ends.

Some cluster file systems do not support such locks. There, the file `.owner` is the lock; elsewhere it only names the
writer. In both cases it holds the process id and the host name, on one line each.
"""

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import SoftFileLock, Timeout, lock_descriptor

from compresskv.errors import UserError
from evals.files import ended

PATIENCE = 0.5
"""Seconds that a writer waits for readers, which hold the lock only briefly."""


def acquire(folder: Path, descriptor: int) -> Callable[[], None]:
    """Make this process the writer of `folder`, whose samples.jsonl is open as `descriptor`. Return a release function.

    The release function closes `descriptor` and raises nothing, since appended lines are already on disk. Raises
    `UserError` with the name of the current writer, if any, and `OSError` if `.owner` is needed and cannot be written.
    """
    owner, until = folder / ".owner", time.monotonic() + PATIENCE
    marker = None
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > until:
                raise _in_use(owner, "wait for it, or set another folder")
            time.sleep(0.01)
    except OSError as error:
        _tell_once(error.strerror)
        marker = SoftFileLock(owner, timeout=0, thread_local=False)
        try:
            marker.acquire()
        except Timeout:
            fix = f"wait for it, or, if that process is gone, delete {owner}"
            raise _in_use(owner, fix) from None
    else:
        with contextlib.suppress(OSError):
            owner.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")

    def release() -> None:
        with contextlib.suppress(OSError):
            if marker:
                marker.release()
            elif _read(owner) == (os.getpid(), socket.gethostname()):
                owner.unlink()
        with contextlib.suppress(OSError):
            os.close(descriptor)

    return release


def held(folder: Path) -> bool:
    """Return whether a process is writing to `folder`. This never blocks a new writer: `acquire` waits for readers."""
    try:
        descriptor = os.open(folder / "samples.jsonl", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return (folder / ".owner").exists() and not _gone(folder / ".owner")
    finally:
        os.close(descriptor)
    return False


def _in_use(owner: Path, fix: str) -> UserError:
    known = _read(owner)
    name = f" (process {known[0]} on {known[1]})" if known and not _gone(owner) else ""
    return UserError("paths.results", fix, value=owner.parent, why=f"in use by another process{name}")


def _read(owner: Path) -> tuple[int, str] | None:
    """Return the process id and host name in the file; None if the file is empty or cannot be read."""
    try:
        process, host, *_ = owner.read_text().split()
        return int(process), host
    except (OSError, ValueError):
        return None


def _gone(owner: Path) -> bool:
    """Return whether `owner` names a process of this machine that has ended; False for other machines."""
    known = _read(owner)
    return known is not None and known[1] == socket.gethostname() and ended(known[0])


@cache
def _tell_once(reason: str) -> None:
    print(f"this file system has no locks ({reason}): a file .owner in each folder is used instead", file=sys.stderr)
