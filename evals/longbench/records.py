"""Strict JSONL reading: every mistake in a file becomes one sentence that names the file and the line."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskv.errors import UserError

LARGEST_INTEGER = 2**63 - 1
LARGEST_LINE = 64 << 20  # bytes


def data_files(folder: Path) -> list[Path]:
    """The .jsonl files of a folder by name, without other programs' notes, such as macOS's "._qasper.jsonl"."""
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith("."))


def read_jsonl(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """("path, line k", object) for each line of a file's content; `UserError` for an empty file or a corrupt line.

    A byte order mark and blank lines at the end are no data.
    """
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
            raise UserError(f"{place}: has more than {LARGEST_LINE >> 20} MiB: give one record a line.")
        records += 1
        yield place, _parse(place, line)
    if not records:
        raise UserError(f"{path} is empty: expected one JSON object a line.")


def _parse(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not valid UTF-8 ({error.reason} at byte {error.start + 1}).") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start]).strip("'")
        raise UserError(f"{place}: {half} is half a character (a lone surrogate): save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise UserError(f"{place}: a number has too many digits.") from error
    except RecursionError as error:
        raise UserError(f"{place}: not valid JSON (nested too deeply).") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}.")
    return record


def text_field(place: str, record: dict[str, Any], name: str) -> str:
    """The string `record[name]`."""
    value = _field(place, record, name)
    if not isinstance(value, str):
        raise UserError(f"{place}: {name!r} must be a string, got {type(value).__name__}.")
    return value


def answers_field(place: str, record: dict[str, Any]) -> tuple[str, ...]:
    """The reference answers, at least one."""
    answers = _strings(place, "answers", _field(place, record, "answers"))
    if not answers:
        raise UserError(f"{place}: 'answers' is empty, there is nothing to score against.")
    return answers


def classes_field(place: str, record: dict[str, Any], needed: bool) -> tuple[str, ...] | None:
    """The class names of a classification task; null elsewhere (`needed` false)."""
    classes = _field(place, record, "all_classes") if needed else record.get("all_classes")
    if classes is None:
        if needed:
            raise UserError(f"{place}: 'all_classes' is null, but a classification task needs the list of class names.")
        return None
    return _strings(place, "all_classes", classes)


def length_field(place: str, record: dict[str, Any]) -> int:
    """The `length` of the official record, words (characters in Chinese)."""
    return integer(place, "length", _field(place, record, "length"))


def integer(place: str, name: str, value: object) -> int:
    """`value`, checked to be a whole number of zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_INTEGER:
        raise UserError(f"{place}: {name!r} must be a whole number of at least 0, got {shortened(value)}.")
    return value


def shortened(value: object, longest: int = 40) -> str:
    """`value` as it is shown in a sentence."""
    shown = repr(value)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


def _field(place: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(f"{place}: the record has no {name!r} field.")
    return record[name]


def _strings(place: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: {name!r} must be a list of strings.")
    return tuple(value)
