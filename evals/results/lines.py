"""`samples.jsonl` as bytes: how a line is written, and the one way in which lines are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.results.schema import FailedLine, Line, Number, SampleLine, checksum, dumps, loads, misfit

CIRCUMSTANCES = ("batch", "timing")
"""Fields of a line that say how it was computed. They have a checksum apart, so equal results have equal ones."""

Scores = dict[str, Number]


@dataclass(frozen=True)
class Lines:
    """The complete lines of a file by id, in order, and what is wrong with others, by line number.

    `failures`: the last line of each sample that failed and has no result yet; no other field knows of them. `size`:
    bytes of the complete lines; what follows was being written when the file was read, or its writer was killed.
    `foreign`: by line number, what lines of another setting say of it. `unchecked`: how many lines have no checksum,
    `unnamed`: how many do not name their setting, both as those of older versions.
    """

    by_id: dict[str, Line]
    failures: dict[str, Line]
    faults: dict[int, str]
    size: int
    unchecked: int
    foreign: dict[int, str]
    unnamed: int


def owner(folder: Path, runs: Path, fingerprint: str) -> dict[str, str]:
    """What the lines of the setting in `folder`, below `runs`, have in `of`; `fingerprint` is that of the model."""
    return {"folder": folder.relative_to(runs).as_posix(), "model_fingerprint": fingerprint}


def decode(content: bytes, of: Mapping[str, str] | None = None) -> Lines:
    """Read all complete lines. The first result of an id counts; what comes after it is a fault.

    A line with an `error` is no result: the sample was tried, and is tried again. A line whose `of` is another than
    this one belongs to another setting.
    """
    size = content.rfind(b"\n") + 1
    by_id: dict[str, Line] = {}
    failures: dict[str, Line] = {}
    faults: dict[int, str] = {}
    foreign: dict[int, str] = {}
    unchecked = unnamed = 0
    # Not `splitlines`: JSON strings may hold other line separators, such as U+2028.
    for number, text in enumerate(content[:size].split(b"\n")[:-1], 1):
        try:
            line = loads(text.decode("utf-8"))
            identifier = line["id"]
            if not isinstance(identifier, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            faults[number] = "not a sample's JSON line"
            continue
        if identifier in by_id:
            faults[number] = f"sample {identifier} for the second time"
            continue
        if "checksum" not in line:
            unchecked += 1
        elif not _intact(line):
            faults[number] = f"sample {identifier} was changed after it was written: its checksum is another"
            continue
        if not isinstance(line.get("of"), dict):
            unnamed += 1
        elif another := _another(line["of"], of or {}):
            foreign[number] = another
            continue
        if fault := _misfit(line):
            faults[number] = f"sample {identifier} has a field of the wrong kind ({fault})"
        elif "error" in line:
            failures[identifier] = line
        else:
            by_id[identifier] = line
            failures.pop(identifier, None)
    return Lines(by_id, failures, faults, size, unchecked, foreign, unnamed)


def _another(named: Mapping[str, Any], of: Mapping[str, str]) -> str:
    """Whose a line is that names another owner than `of`, in a phrase; "" if it does not."""
    if "folder" in of and named.get("folder") != of["folder"]:
        return f"a line of {named.get('folder')}"
    if "model_fingerprint" in of and named.get("model_fingerprint") != of["model_fingerprint"]:
        return f"a line of other weights, with the fingerprint {named.get('model_fingerprint')}"
    return ""


def encode(line: Mapping[str, Any]) -> bytes:
    """A line with its checksum, as it is written. Raises `ValueError` for a number that is not finite."""
    return (dumps(sealed(line)) + "\n").encode()


def sealed(line: Mapping[str, Any]) -> Line:
    """The line with its checksums: `checksum` of the result, and in `timing` that of its circumstances."""
    content = {key: value for key, value in line.items() if key != "checksum"}
    if isinstance(content.get("timing"), dict):
        timing = {key: value for key, value in content["timing"].items() if key != "checksum"}
        covered = {"batch": content.get("batch"), "timing": timing}
        content["timing"] = {**timing, "checksum": checksum(covered)}
    return {**content, "checksum": checksum(content, CIRCUMSTANCES)}


def _intact(line: Line) -> bool:
    """Whether a line's checksums are those of its fields."""
    try:
        return line == sealed(line)
    except (ValueError, RecursionError):  # nothing that could be written has such a field
        return False


def _misfit(line: Line) -> str:
    """What of a line is not as the schema says, its further scores included; "" if nothing.

    Lines that are of no sample, as those that a calibration keeps, have other fields.
    """
    if "error" in line:
        return misfit(FailedLine, line)
    if not {"score", "prediction"} & set(line):
        return ""
    further = {name: value for name, value in line.items() if name.startswith("score_")}
    return misfit(SampleLine, line) or misfit(Scores, further)
