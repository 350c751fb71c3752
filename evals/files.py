"""Write files atomically, with errors of one sentence, and read and write strict JSON."""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

import yaml

from compresskv.checking import Name, checked_value
from compresskv.errors import UserError

TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)

UNFINISHED = re.compile(r"\.(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{16}\.tmp")
"""Name of a temporary file, with its machine and process; older versions do not include these."""


def write_json(path: Path, content: Any) -> None:
    """Atomically replace `path` by `content` as JSON. Raises `ValueError` for numbers that are not finite."""
    write_text(path, dumps(content, indent=2) + "\n")


def write_yaml(path: Path, content: Any) -> None:
    """Atomically replace `path` by `content` as YAML."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_text(path: Path, text: str) -> None:
    """Atomically replace `path` by `text` in UTF-8. Raises `UserError` if writing fails."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically replace `path` by `content`. Raises `UserError` if writing fails.

    Temporary files that killed processes left in this folder are removed.
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
    """Remove temporary files: after 5 seconds if their process on this machine has ended, and after a day otherwise."""
    for path in folder.glob(".*.tmp"):
        if (name := UNFINISHED.fullmatch(path.name)) is None:
            continue
        gone = name[1] == _host() and ended(int(name[2]))
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > (5 if gone else 86_400):
                path.unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def ended(process: int) -> bool:
    """Return whether a process of this machine has ended; False if this cannot be determined."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def new_folder(parent: Path) -> Path:
    """Create a folder that is named by the current time. Raises `UserError` if it cannot be created."""
    now = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count():
            folder = parent / (f"{now}-{attempt}" if attempt else now)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise refused(parent, error) from error
    raise AssertionError


def safe_name(where: str, name: str) -> str:
    """Return `name` if it can name one folder, else raise `UserError` about the field `where`, such as `model.name`."""
    return str(checked_value(where, Name, name))


def refused(folder: Path, error: OSError) -> UserError:
    """Return the error for a folder that cannot be written."""
    if error.errno in TOO_MANY_OPEN:
        return UserError(
            "paths.results",
            "raise the limit with `ulimit -n`, or run fewer settings at once",
            value=folder,
            why="too many open files, one for each setting of a task; finished samples are saved",
        )
    return UserError(
        "paths.results",
        "free disk space or set another folder, and run the same command again",
        value=folder,
        why=f"cannot be written ({error.strerror or error}); finished samples are saved",
    )


def loads(text: str) -> Any:
    """Parse standard JSON. Raises `ValueError` for NaN and infinities, which Python's parser accepts."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def dumps(value: Any, **options: Any) -> str:
    """Return JSON that can be encoded as UTF-8. It is escaped to ASCII only if a string has half a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, **options)
    return text


def _finite(digits: str) -> float:
    """Parse a float. Raises `ValueError` if it overflows to infinity, such as 1e999."""
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
