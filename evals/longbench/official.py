"""Compare data with the official rows, to detect wrong or partial copies.

official_index.json has the first six hex digits of sha256(answers, length) for every row of a task, in the order of
the official file. Build it from any full copy, or from published predictions in official order:

    python -m evals.longbench.official DIR_OF_TASK_JSONL > evals/longbench/official_index.json
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compresskv.errors import UserError
from compresskv.inputs import read_once
from evals.json_lines import Answers, Count, field_of, read_jsonl
from evals.longbench.records import Content, Row
from evals.longbench.tasks import TASKS, Task

INDEX = Path(__file__).with_name("official_index.json")
_DIGITS = 6


@dataclass(frozen=True)
class RowCheck:
    """Counts from comparing rows with the official rows; `matching + missing = official`."""

    task: str
    official: int
    matching: int
    mismatching: int
    missing: int

    @property
    def complete(self) -> bool:
        """Whether the rows are exactly the official rows."""
        return self.matching == self.official and self.mismatching == 0


def fingerprint(answers: Sequence[str], length: int) -> str:
    """Return a short hash of the fields that an official row and its prediction share."""
    content = json.dumps([list(answers), length], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:_DIGITS]


def check_rows(task: str, rows: Iterable[tuple[int, Sequence[str], int]]) -> RowCheck:
    """Compare (row number, answers, length) triples with the official rows of these numbers."""
    given, official = list(rows), _index()[task]
    known = (row < len(official) and official[row] == fingerprint(answers, length) for row, answers, length in given)
    seen = {row for (row, *_), same in zip(given, known, strict=True) if same}
    return _checked(task, len(given), len(seen))


def check_flags(task: str, flags: Sequence[bool]) -> RowCheck:
    """Return a `RowCheck` from one flag per row, whether it is official; row numbers must be distinct."""
    return _checked(task, len(flags), sum(flags))


def locate(task: str, rows: Sequence[tuple[Sequence[str], int]]) -> list[int | None]:
    """Return the number of the official row with the content of each (answers, length); None if no row matches.

    Of official rows with equal content, a row gets the official row at its position if possible, else the first free
    official row.
    """
    official = _index()[task]
    given = [fingerprint(answers, length) for answers, length in rows]
    numbers: list[int | None] = [
        line if line < len(official) and official[line] == content else None for line, content in enumerate(given)
    ]
    free: dict[str, list[int]] = {}
    for number, content in enumerate(official):
        if number >= len(given) or numbers[number] is None:
            free.setdefault(content, []).append(number)
    for line, content in enumerate(given):
        if numbers[line] is None and free.get(content):
            numbers[line] = free[content].pop(0)
    return numbers


def row_problem(task: Task, row: Row, text: bool = True) -> str:
    """Return how a record differs from the official row with its number; "" if no difference was found.

    `text`: also check context and input with `prompt_problem`.
    """
    official, content = _index()[task.name], fingerprint(row.answers, row.length)
    if content not in official:
        return "no official row has its answers and length"
    if text and (problem := prompt_problem(task, row)):
        return problem
    if row.row >= len(official):
        return "it repeats another row (same answers and length)"
    return "" if official[row.row] == content else f"its answers and length differ from the official row {row.row}"


def prompt_problem(task: Task, content: Content) -> str:
    """Return how the text of a row with official answers and length differs; "" if no difference was found.

    The official length counts the words of context, input and one answer, or that answer as one word. In musique, only
    spaces separate words. The text of Chinese tasks is not checked, since their way to count characters is unknown.
    """
    if task.language != "en":
        return ""
    separator = " " if task.name == "musique" else None
    words = sum(len(text.split(separator)) for text in (content.context, content.input))
    if content.length - words in {1, *(len(answer.split(separator)) for answer in content.answers)}:
        return ""
    return f"context and question have {words} words, which does not fit the length {content.length}"


def check_unordered(task: str, rows: Iterable[tuple[Sequence[str], int]]) -> RowCheck:
    """Compare (answers, length) pairs, in any order, with the official rows, for predictions without row numbers."""
    given = Counter(fingerprint(answers, length) for answers, length in rows)
    return _checked(task, given.total(), (Counter(_index()[task]) & given).total())


def _checked(task: str, given: int, matching: int) -> RowCheck:
    official = len(_index()[task])
    return RowCheck(task, official, matching, given - matching, official - matching)


def build_index(folder: Path) -> dict[str, str]:
    """Build the content of official_index.json from a folder with a full task.jsonl for each of the 21 tasks."""
    index = {}
    for task in TASKS.values():
        path = folder / f"{task.name}.jsonl"
        rows = [
            fingerprint(field_of(place, record, "answers", Answers), field_of(place, record, "length", Count))
            for place, record in read_jsonl(path, read_once(path, None))
        ]
        if len(rows) != task.n:
            fix = f"give the official file, which has {task.n} rows"
            raise UserError(None, fix, value=path, why=f"it has {len(rows)} rows")
        index[task.name] = "".join(rows)
    return index


@cache
def _index() -> dict[str, list[str]]:
    joined = json.loads(INDEX.read_text(encoding="ascii"))
    return {
        task: [rows[start : start + _DIGITS] for start in range(0, len(rows), _DIGITS)] for task, rows in joined.items()
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m evals.longbench.official DIR_OF_TASK_JSONL")
    try:
        print(json.dumps(build_index(Path(sys.argv[1])), indent=0))
    except UserError as error:
        sys.exit(str(error))
