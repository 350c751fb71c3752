"""Encode and decode the lines of `samples.jsonl`. All code that reads or writes lines uses this module."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.files import dumps, loads
from evals.results.schema import FailedLine, Line, Number, SampleLine, checksum, misfit

CIRCUMSTANCES = ("batch", "timing")
"""Fields of a line that say how it was computed. These fields have a separate checksum, so that equal results have
equal checksums."""

Scores = dict[str, Number]


@dataclass
class Lines:
    """The decoded lines of a file.

    - `by_id`: the complete, valid lines with a result, by id and in file order.
    - `failures`: the last line of each sample that failed and has no result yet.
    - `faults`: descriptions of invalid lines, by line number.
    - `foreign`: line numbers of lines that belong to another setting, by the description of that setting.
    - `size`: bytes of the complete lines. Bytes after them belong to a line that is incomplete, because it was being
      written or its writer was killed.
    - `unchecked`, `unnamed`: numbers of lines without a checksum, and without the name of their setting. Older versions
      wrote such lines.
    - `unreadable`: the reason why the file cannot be read; "" if it can.
    """

    by_id: dict[str, Line] = field(default_factory=dict)
    failures: dict[str, Line] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    foreign: dict[str, list[int]] = field(default_factory=dict)
    size: int = 0
    unchecked: int = 0
    unnamed: int = 0
    unreadable: str = ""


def owner(folder: Path, runs: Path, fingerprint: str) -> dict[str, str]:
    """Return the `of` field for lines of the setting in `folder`, below `runs`; `fingerprint` is the model's
    fingerprint."""
    return {"folder": folder.relative_to(runs).as_posix(), "model_fingerprint": fingerprint}


def decode(content: bytes, of: Mapping[str, str] | None = None) -> Lines:
    """Decode all complete lines. Only the first result of an id is kept; later lines of that id are faults.

    A line with an `error` is a failed attempt, and the sample will be tried again. A line whose `of` differs from the
    given `of` belongs to another setting.
    """
    lines = Lines(size=content.rfind(b"\n") + 1)
    # `splitlines` would also split at separators inside JSON strings, such as U+2028.
    for number, text in enumerate(content[: lines.size].split(b"\n")[:-1], 1):
        try:
            line = loads(text.decode("utf-8"))
            identifier = line["id"]
            if not isinstance(identifier, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            lines.faults[number] = "not a sample's JSON line"
            continue
        if identifier in lines.by_id:
            lines.faults[number] = f"sample {identifier} appears a second time"
            continue
        if "checksum" not in line:
            lines.unchecked += 1
        elif not _intact(line):
            lines.faults[number] = f"sample {identifier} was changed after it was written: its checksum does not match"
            continue
        if not isinstance(line.get("of"), dict):
            lines.unnamed += 1
        elif another := _another(line["of"], of or {}):
            lines.foreign.setdefault(another, []).append(number)
            continue
        if fault := _misfit(line):
            lines.faults[number] = f"sample {identifier} has a field of the wrong kind ({fault})"
        elif "error" in line:
            lines.failures[identifier] = line
        else:
            lines.by_id[identifier] = line
            lines.failures.pop(identifier, None)
    return lines


def _another(named: Mapping[str, Any], of: Mapping[str, str]) -> str:
    """Describe the owner of a line if it differs from `of`; "" if it matches."""
    if "folder" in of and named.get("folder") != of["folder"]:
        return f"a line of {named.get('folder')}"
    if "model_fingerprint" in of and named.get("model_fingerprint") != of["model_fingerprint"]:
        return f"a line of other weights, with the fingerprint {named.get('model_fingerprint')}"
    return ""


def encode(line: Mapping[str, Any]) -> bytes:
    """Return the bytes of a line with its checksum. Raises `ValueError` for a number that is not finite."""
    return (dumps(sealed(line)) + "\n").encode()


def sealed(line: Mapping[str, Any]) -> Line:
    """Return the line with its checksums: `checksum` for the result, and one in `timing` for `CIRCUMSTANCES`."""
    content = {key: value for key, value in line.items() if key != "checksum"}
    if isinstance(content.get("timing"), dict):
        timing = {key: value for key, value in content["timing"].items() if key != "checksum"}
        covered = {"batch": content.get("batch"), "timing": timing}
        content["timing"] = {**timing, "checksum": checksum(covered)}
    return {**content, "checksum": checksum(content, CIRCUMSTANCES)}


def _intact(line: Line) -> bool:
    """Return whether a line's checksums match its fields."""
    try:
        return line == sealed(line)
    except (ValueError, RecursionError):  # `encode` never wrote such a field
        return False


def _misfit(line: Line) -> str:
    """Describe the first field of a line that violates the schema, including further scores; "" if all fields are
    valid.

    Lines without a score and a prediction, such as a calibration's lines, are not checked.
    """
    if "error" in line:
        return misfit(FailedLine, line)
    if not {"score", "prediction"} & set(line):
        return ""
    further = {name: value for name, value in line.items() if name.startswith("score_")}
    return misfit(SampleLine, line) or misfit(Scores, further)
