"""Strict JSONL reading: every mistake in a file becomes one sentence that names the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskv.errors import UserError


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("path, line k", object) for each line; `UserError` for a missing or empty file or a corrupt line."""
    line_number = 0
    try:
        with open(path, "rb") as file:
            for line_number, line in enumerate(file, start=1):
                place = f"{path}, line {line_number}"
                yield place, _parse(place, line)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    if line_number == 0:
        raise UserError(f"{path} is empty: expected one JSON object a line.")


def _parse(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not valid UTF-8 ({error.reason} at byte {error.start + 1}).") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg}, column {error.colno}).") from error
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
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{place}: {name!r} must be a whole number of at least 0, got {value!r}.")
    return value


def _field(place: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UserError(f"{place}: the record has no {name!r} field.")
    return record[name]


def _strings(place: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: {name!r} must be a list of strings.")
    return tuple(value)
