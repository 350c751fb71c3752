"""What an evaluation without samples left behind, such as times or a calibration: one JSON file, read back."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Required

from typing_extensions import TypedDict

from compresskv.checking import Ge, Gt, Le, MinLen
from compresskv.errors import UserError
from evals.results.schema import LARGEST, Bounds, Count, Label, Number, Size, exactly, loads, misfit

Columns = tuple[list[str], list[list[Any]]]
"""A table: the names of its columns, and its rows."""


@dataclass(frozen=True)
class Measurement:
    """The file at `path`, what wrote it, and of which model."""

    path: Path
    model: str
    eval: str

    @cached_property
    def content(self) -> dict[str, Any]:
        """The file's fields. Raises `UserError` for a file that is not JSON, or no mapping."""
        try:
            content = loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(None, "run it again", value=self.path, why=f"cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise UserError(None, "run it again", value=self.path, why="not what a run wrote")
        return content

    @property
    def digest(self) -> str:
        """Eight digits of the content's hash: the same for this measurement wherever its file lies."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def about(self) -> dict[str, Any]:
        """The fields that are no table."""
        return {name: value for name, value in self.content.items() if not _table(value)}

    @property
    def tables(self) -> dict[str, Columns]:
        """Lists of mappings, lists of numbers, and matrices by kind (all of one shape), as tables by their field."""
        return {name: table for name, value in self.content.items() if (table := _table(value))}


def measurements(results: Path) -> list[Measurement]:
    """All measurements under `results`: of efficiency, and the calibrations that are kept there."""
    found = []
    for path in efficiency_files(results):
        found.append(Measurement(path, path.parents[1].name, "efficiency"))
    for path in sorted(results.glob("calibration/*.json")):
        found.append(Measurement(path, path.name.rsplit(".", 2)[0], "calibrate"))
    return found


def efficiency_files(results: Path) -> list[Path]:
    """The files of all efficiency measurements under `results`; those of a model in the order that they were made."""
    return sorted(results.glob("efficiency/*/*/efficiency.json"))


@exactly
class Row(TypedDict, total=False):
    """One setting at one prompt length: medians over the rounds, and their ratios to the full cache."""

    setting: Required[Label]
    length: Required[Annotated[int, Ge(1), Le(LARGEST)]]
    method: Label
    budget: Annotated[int, Ge(1)] | None
    protocol: Label
    first_token_s: Size | None
    decode_ms: Size | None
    total_s: Size | None
    cache_bytes: Size | None
    peak_bytes: Size | None
    first_token_s_ratio: Size | None
    decode_ms_ratio: Size | None
    total_s_ratio: Size | None
    cache_bytes_ratio: Size | None
    peak_bytes_ratio: Size | None
    launch_bound: bool | None
    by_round: dict[str, list[Number | None]]


@exactly
class Pool(TypedDict, total=False):
    """A setting at a prompt length in a pool of memory; without `sequences`, it does not fit."""

    setting: Required[Label]
    length: Required[Annotated[int, Ge(1), Le(LARGEST)]]
    method: Label
    protocol: Label
    pool_mb: Required[Annotated[float, Gt(0), Le(LARGEST)]]
    sequences: Required[Count]
    sequence_bytes: Required[Annotated[float, Gt(0), Le(LARGEST)]]
    tokens_per_s_alone: Required[Size]
    tokens_per_s: Required[Size | None]
    tokens_per_s_spread: Required[Bounds]
    tokens_per_s_ratio: Size | None
    first_token_s: Required[Size | None]
    all_first_tokens_s: Required[Size | None]
    peak_bytes: Required[Size | None]
    launch_bound: Required[bool | None]


@exactly
class FilledPool(Pool, total=False):
    """One that holds a sequence."""

    tokens_per_s: Required[Size]  # type: ignore[misc]
    tokens_per_s_spread: Required[Annotated[list[Size], MinLen(2)]]  # type: ignore[misc]


@exactly
class Efficiency(TypedDict, total=False):
    """efficiency.json, of which `rows` and `concurrency` are looked at one by one."""

    model: Required[Label]
    dtype: Required[str]
    backend: Required[str]
    new_tokens: Required[Count]
    rounds: Required[Count]
    environment: dict[str, Any]
    rows: Required[list[Any]]
    concurrency: list[Any]


def efficiency_runs(results: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """The efficiency measurements under `results` with their sound rows, and a phrase for what is left out of them."""
    found, faults = [], []
    for path in efficiency_files(results):
        place = path.relative_to(results)
        try:
            content = loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            faults.append(f"{place}: cannot be read ({error})")
            continue
        if fault := misfit(Efficiency, content):
            faults.append(f"{place}: not a measurement ({fault})")
            continue
        for name, wrong_with in (("rows", partial(misfit, Row)), ("concurrency", _misfit_pool)):
            wrong = list(map(wrong_with, rows := content.get(name, [])))
            faults += [f"{place}: {name}.{number} is left out ({fault})" for number, fault in enumerate(wrong) if fault]
            content[name] = [row for row, fault in zip(rows, wrong, strict=True) if not fault]
        found.append((path, content))
    return found, faults


def _misfit_pool(row: Any) -> str:
    return misfit(Pool, row) or (misfit(FilledPool, row) if row["sequences"] else "")


def _table(value: Any) -> Columns | None:
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        columns = list(dict.fromkeys(name for row in value for name in row))
        return columns, [[row.get(name) for name in columns] for row in value]
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return ["layer", "value"], [[layer, item] for layer, item in enumerate(value)]
    matrices = list(value.values()) if isinstance(value, Mapping) else []
    if matrices and all(map(_is_matrix, matrices)) and len({tuple(map(len, matrix)) for matrix in matrices}) == 1:
        return _by_cell(value)
    return None


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) for row in value)


def _by_cell(matrices: Mapping[str, Sequence[Sequence[float]]]) -> Columns:
    """A row for each layer and head, a column for each matrix [layer][head]."""
    rows: list[list[Any]] = []
    first = next(iter(matrices.values()))
    for layer, heads in enumerate(first):
        rows += [[layer, head, *(matrix[layer][head] for matrix in matrices.values())] for head in range(len(heads))]
    return ["layer", "head", *matrices], rows
