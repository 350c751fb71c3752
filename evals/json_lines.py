"""Read JSON Lines records. Errors name the file and the line."""

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from compresskv.checking import Ge, Le, MinLen, checked, checked_value
from compresskv.errors import UserError, located

T = TypeVar("T")

LARGEST_LINE = 64 << 20  # bytes

Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Answers = Annotated[tuple[str, ...], MinLen(1)]
Classes = tuple[str, ...] | None


def read_jsonl(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("path, line k", object) for each line. Ignores a byte order mark and blank lines at the end."""
    blank, records = "", 0
    for number, line in enumerate(io.BytesIO(content), start=1):
        place = f"{path}, line {number}"
        line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if not line:
            blank = blank or place
            continue
        if blank:
            _parse(blank, b"")
        if len(line) > LARGEST_LINE:
            raise UserError(None, "give one record per line", why=f"longer than {LARGEST_LINE >> 20} MiB", where=place)
        records += 1
        yield place, _parse(place, line)
    if not records:
        raise UserError(None, "give one JSON object per line", value=path, why="empty")


def _parse(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        fix, why = _fault(error)
        raise UserError(None, fix, why=why, where=place) from error
    if not isinstance(record, dict):
        raise UserError(None, "give one JSON object per line", value=record, why="not a JSON object", where=place)
    return record


def _fault(error: ValueError | RecursionError) -> tuple[str, str]:
    """Return how to fix a line that cannot be read, and what is wrong with it."""
    match error:
        case UnicodeDecodeError():
            return "save the file as UTF-8", f"not valid UTF-8 ({error.reason} at byte {error.start + 1})"
        case UnicodeEncodeError():
            half = ascii(error.object[error.start]).strip("'")
            return "save the file as UTF-8", f"{half} is a lone surrogate (half a character)"
        case json.JSONDecodeError():
            return "give one JSON object per line", f"not valid JSON ({error.msg}, column {error.colno})"
        case RecursionError():
            return "give one JSON object per line", "not valid JSON (nested too deeply)"
    return "write the number with fewer digits", "a number has too many digits"  # Python refuses more than 4300


def checked_record(place: str, kind: type[T], record: Mapping[str, Any], needs_classes: bool = False) -> T:
    """Create a dataclass `kind` from its fields in a record. `needs_classes`: require `all_classes`."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    with located(place):
        if needs_classes and record.get("all_classes") is None:
            value, fix = record.get("all_classes", ...), "give the list of class names of the classification task"
            raise UserError("all_classes", fix, value=value)
        return checked("", kind, {name: value for name, value in record.items() if name in known})


def field_of(place: str, record: Mapping[str, Any], name: str, hint: Any) -> Any:
    """Return one field of a record, checked against the type `hint`. Raises `UserError`."""
    if name not in record:
        raise UserError(name, "add it", why="the field is missing", where=place)
    with located(place):
        return checked_value(name, hint, record[name])
