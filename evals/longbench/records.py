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
            raise UserError(None, "give one record a line", why=f"longer than {LARGEST_LINE >> 20} MiB", where=place)
        records += 1
        yield place, _parse(place, line)
    if not records:
        raise UserError(None, "give one JSON object a line", value=path, why="empty")


def _parse(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            None,
            "save the file as UTF-8",
            why=f"not valid UTF-8 ({error.reason} at byte {error.start + 1})",
            where=place,
        ) from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start]).strip("'")
        raise UserError(
            None, "save the file as UTF-8", why=f"{half} is half a character (a lone surrogate)", where=place
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            None, "give one JSON object a line", why=f"not valid JSON ({error.msg}, column {error.colno})", where=place
        ) from error
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise UserError(None, "write it with fewer", why="a number has too many digits", where=place) from error
    except RecursionError as error:
        raise UserError(
            None, "give one JSON object a line", why="not valid JSON (nested too deeply)", where=place
        ) from error
    if not isinstance(record, dict):
        raise UserError(None, "give one JSON object a line", value=record, why="not a JSON object", where=place)
    return record


def text_field(place: str, record: dict[str, Any], name: str) -> str:
    """The string `record[name]`."""
    value = _field(place, record, name)
    if not isinstance(value, str):
        raise UserError(name, "choose a text", value=value, where=place)
    return value


def answers_field(place: str, record: dict[str, Any]) -> tuple[str, ...]:
    """The reference answers, at least one."""
    answers = _strings(place, "answers", _field(place, record, "answers"))
    if not answers:
        raise UserError("answers", "give at least one to score against", value=answers, where=place)
    return answers


def classes_field(place: str, record: dict[str, Any], needed: bool) -> tuple[str, ...] | None:
    """The class names of a classification task; null elsewhere (`needed` false)."""
    classes = _field(place, record, "all_classes") if needed else record.get("all_classes")
    if classes is None:
        if needed:
            raise UserError(
                "all_classes", "give the list of class names of the classification task", value=None, where=place
            )
        return None
    return _strings(place, "all_classes", classes)


def length_field(place: str, record: dict[str, Any]) -> int:
    """The `length` of the official record, words (characters in Chinese)."""
    return integer(place, "length", _field(place, record, "length"))


def integer(place: str, name: str, value: object) -> int:
    """`value`, checked to be a whole number of zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_INTEGER:
        raise UserError(name, "choose a whole number, at least 0", value=value, where=place)
    return value


def _field(place: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(name, "add it", why="the record has no such field", where=place)
    return record[name]


def _strings(place: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(name, "choose a list of texts", value=value, where=place)
    return tuple(value)
