"""The paper's own numbers, `results/paper/*.csv`, to be shown beside ours."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compresskv.errors import UserError
from compresskv.folders import shipped

FOLDER = shipped("results/paper")
COLUMNS = ("item", "model", "method", "budget", "task_or_metric", "value", "unit", "source", "note")
SECOND_HAND = "second-hand"


@dataclass(frozen=True)
class Published:
    """One published number; the columns are explained in results/paper/README.md. `budget` None: the full cache, or
    none is named."""

    item: str
    model: str
    method: str
    budget: int | None
    task_or_metric: str
    value: float
    unit: str
    source: str
    note: str

    @property
    def column(self) -> str:
        """The task or metric, with its unit unless that is a score."""
        return self.task_or_metric if self.unit == "score" else f"{self.task_or_metric} ({self.unit})"

    @property
    def second_hand(self) -> bool:
        """Not seen in the paper itself."""
        return self.source == SECOND_HAND


def published(item: str, folder: Path = FOLDER) -> list[Published]:
    """The published numbers of an experiment such as `table2_heads`, in the order of the files; none for others.

    Raises `UserError`, with file and line, for a file that is not as README.md describes.
    """
    return [row for row in _all(folder) if row.item == item]


@cache
def _all(folder: Path) -> tuple[Published, ...]:
    rows: list[Published] = []
    for path in sorted(folder.glob("[!.]*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(None, f"make the columns {', '.join(COLUMNS)}", value=path, why="it has other columns")
            rows += [_row(f"{path}, line {reader.line_num}", fields) for fields in reader]
    return tuple(rows)


def _row(place: str, fields: dict[str, str]) -> Published:
    if None in fields or None in fields.values():
        raise UserError(None, f"give the row {len(COLUMNS)} columns", where=place)
    numbers = {
        "budget": _number(place, fields, "budget", int) if fields["budget"] else None,
        "value": _number(place, fields, "value", float),
    }
    return Published(**fields | numbers)  # type: ignore[arg-type]


def _number(place: str, fields: dict[str, str], name: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(fields[name])
    except ValueError as error:
        fix = "write a whole number" if kind is int else "write a number"
        raise UserError(name, fix, value=fields[name], where=place) from error
