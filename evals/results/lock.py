"""One writer a folder: a lock on `samples.jsonl`, which ends with its process however that ends.

Some cluster file systems have no such locks. There, the file `.owner` keeps others out; elsewhere it only names the
writer.
"""

import contextlib
import errno
import fcntl
import os
import random
import socket
import sys
import time
from functools import cache
from pathlib import Path

from compresskv.errors import UserError

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What a lock that another process holds is refused with. Any other error means that there are no locks here."""

PATIENCE = 5.0
"""Seconds that a writer waits for readers, each of which holds the lock for a moment."""


def acquire(folder: Path, descriptor: int) -> None:
    """Make this process the writer of `folder`; `descriptor` is its open samples.jsonl.

    Raises `UserError` naming the process that is it already, and `OSError` if `.owner` is needed and cannot be written.
    """
    owner = folder / ".owner"
    try:
        locked = _lock(descriptor)
    except OSError as error:
        _tell_once(error.strerror)
        _claim(owner)
        return
    if not locked:
        raise UserError(
            "paths.results",
            "wait for it, or set another folder",
            value=folder,
            why=f"in use by another process{_name(owner)}",
        )
    with contextlib.suppress(OSError):
        owner.write_text(_myself())


def release(folder: Path, descriptor: int) -> None:
    """Let the next writer in, and close `descriptor`. Raises nothing: what was appended is on the disk already."""
    owner = folder / ".owner"
    with contextlib.suppress(OSError):
        if owner.read_text() == _myself():
            owner.unlink()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def held(folder: Path) -> bool:
    """Whether a process writes to `folder`. Never keeps one from starting to: `acquire` waits for readers."""
    try:
        descriptor = os.open(folder / "samples.jsonl", os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    except OSError:
        return (folder / ".owner").exists() and not _gone(folder / ".owner")
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process now has the lock, and no other. Raises `OSError` where there are no locks."""
    until = time.monotonic() + PATIENCE
    while not _try(descriptor, fcntl.LOCK_EX):
        # A writer excludes readers; where this succeeds, only readers are in the way.
        if not _try(descriptor, fcntl.LOCK_SH) or time.monotonic() > until:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(random.uniform(0.001, 0.02))
    return True


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def _claim(owner: Path) -> None:
    """Create `owner`, or take it over from a process of this machine that is gone."""
    takeover = False
    while True:
        try:
            descriptor = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if takeover or not _gone(owner):
                raise UserError(
                    "paths.results",
                    f"wait for it, or, if that process is gone, delete {owner}",
                    value=owner.parent,
                    why=f"in use by another process{_name(owner)}",
                ) from None
            takeover = True
            owner.unlink(missing_ok=True)
            continue
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_myself())
        except OSError:  # a file that names nobody would keep everybody out
            owner.unlink(missing_ok=True)
            raise
        break
    if takeover:
        time.sleep(0.1)  # another that saw the same process gone may have removed this file instead of that
        if not owner.exists() or owner.read_text() != _myself():
            raise UserError(
                "paths.results", "wait for it", value=owner.parent, why=f"in use by another process{_name(owner)}"
            )


def _myself() -> str:
    return f"{os.getpid()} {socket.gethostname()}"


def _read(owner: Path) -> tuple[int, str] | None:
    """Process and host, if the file says so."""
    try:
        process, host = owner.read_text().split(maxsplit=1)
        return int(process), host
    except (OSError, ValueError):
        return None


def _name(owner: Path) -> str:
    known = _read(owner)
    return f" (process {known[0]} on {known[1]})" if known and not _gone(owner) else ""


def _gone(owner: Path) -> bool:
    """Whether `owner` names a process of this machine that has ended. Of other machines nobody knows."""
    known = _read(owner)
    return known is not None and known[1] == socket.gethostname() and ended(known[0])


def ended(process: int) -> bool:
    """Whether a process of this machine has ended, as far as can be seen."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


@cache
def _tell_once(reason: str) -> None:
    print(f"this file system has no locks ({reason}): a file .owner in each folder takes their place", file=sys.stderr)
