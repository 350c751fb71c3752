"""Read the JSON file that an evaluation without samples writes, such as times or a calibration."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from evals.files import loads
from evals.results.shows import hooks

Columns = tuple[list[str], list[list[Any]]]
"""A table as its column names and its rows."""


@dataclass(frozen=True)
class Measurement:
    """The file at `path`, which the evaluation `eval` wrote for `model`."""

    path: Path
    model: str
    eval: str

    @cached_property
    def content(self) -> dict[str, Any]:
        """The file's fields. Raises `UserError` if the file is not JSON or not a mapping."""
        try:
            content = loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(None, "run it again", value=self.path, why=f"cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise UserError(None, "run it again", value=self.path, why="not a file that a run wrote")
        return content

    @property
    def digest(self) -> str:
        """Eight digits of the content's hash, which do not depend on the path of the file."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def tables(self) -> dict[str, Columns]:
        """The fields that can be shown as tables: lists of mappings, lists of floats, and mappings to matrices of one
        shape."""
        return {name: table for name, value in self.content.items() if (table := _table(value))}

    @property
    def about(self) -> dict[str, Any]:
        """The other fields."""
        return {name: value for name, value in self.content.items() if name not in self.tables}


def measurements(results: Path) -> list[Measurement]:
    """Return the measurements of all evaluations under `results`."""
    return [Measurement(path, model, kind) for kind, files in hooks("files") for path, model in files(results)]


def _table(value: Any) -> Columns | None:
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        columns = list(dict.fromkeys(name for row in value for name in row))
        return columns, [[row.get(name) for name in columns] for row in value]
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return ["layer", "value"], [[layer, item] for layer, item in enumerate(value)]
    matrices = list(value.values()) if isinstance(value, Mapping) else []
    if matrices and all(map(_is_matrix, matrices)) and len({tuple(map(len, matrix)) for matrix in matrices}) == 1:
        places = [(layer, head) for layer, heads in enumerate(matrices[0]) for head in range(len(heads))]
        rows = [[layer, head, *(matrix[layer][head] for matrix in matrices)] for layer, head in places]
        return ["layer", "head", *value], rows
    return None


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) for row in value)
