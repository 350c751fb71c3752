"""Load the paper's numbers from `results/paper/*.csv`, to show them next to ours."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from compresskv.folders import shipped

FOLDER = shipped("results/paper")
COLUMNS = ("item", "model", "method", "budget", "task_or_metric", "value", "unit", "source", "note")


@dataclass(frozen=True)
class Published:
    """One published number; results/paper/README.md explains the columns. `budget` is None for the full cache, or if no
    budget is given."""

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
        """The task or metric, followed by its unit unless the unit is `score`."""
        return self.task_or_metric if self.unit == "score" else f"{self.task_or_metric} ({self.unit})"


def published(item: str, folder: Path = FOLDER) -> list[Published]:
    """Return the published numbers of an experiment such as `table2_heads`, in the order of the files.

    Raises `UserError`, with file and line, for a file that does not have the format in README.md.
    """
    return [row for row in _all(folder) if row.item == item]


@cache
def _all(folder: Path) -> tuple[Published, ...]:
    rows: list[Published] = []
    for path in sorted(folder.glob("[!.]*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(
                    None, f"use the columns {', '.join(COLUMNS)}", value=path, why="the file has other columns"
                )
            rows += [_row(f"{path}, line {reader.line_num}", fields) for fields in reader]
    return tuple(rows)


def _row(place: str, fields: dict[str, str]) -> Published:
    if None in fields or None in fields.values():
        raise UserError(None, f"give the row {len(COLUMNS)} columns", where=place)
    numbers: dict[str, Any] = {}
    for name, kind, text in (("budget", int, fields["budget"]), ("value", float, fields["value"])):
        try:
            numbers[name] = kind(text) if text or name == "value" else None
        except ValueError as error:
            fix = "write a whole number" if kind is int else "write a number"
            raise UserError(name, fix, value=text, where=place) from error
    return Published(**fields | numbers)
