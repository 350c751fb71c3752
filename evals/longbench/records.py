"""LongBench records, and the files of a folder that contains them."""

from dataclasses import dataclass, field
from pathlib import Path

from evals.json_lines import Answers, Classes, Count


@dataclass(frozen=True)
class Content:
    """The content of a LongBench record; `length` in words, or characters for Chinese."""

    input: str
    context: str
    answers: Answers
    all_classes: Classes
    length: Count


@dataclass(frozen=True)
class Row(Content):
    """A record with its number in the official file, `row`, which is also the sample id.

    `problem`: how it differs from the official row with that number; "" if no difference was found.
    """

    row: int = 0
    problem: str = field(default="", compare=False)


def data_files(folder: Path) -> list[Path]:
    """Return the .jsonl files of a folder, sorted by name. Skips hidden files such as macOS's "._qasper.jsonl"."""
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith("."))
