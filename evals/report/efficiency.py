"""Latency and memory as tables and a figure: from what the last measurement of each model left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compresskv.methods import method_config
from evals.report import concurrency, paper, tables
from evals.report.cells import Cell, Grid, Metric, Row
from evals.report.grids import Cells, filled
from evals.report.items import Item
from evals.report.labels import named, tokens_label
from evals.report.page import Page, Plain, file_part, left_out
from evals.report.selection import nothing, settings_of
from evals.results.measurement import efficiency_runs
from evals.results.provenance import shown_environment


@dataclass(frozen=True)
class Measured:
    """A metric, and how it comes from a field of a measurement."""

    metric: Metric
    of: Callable[[float], float] = float


def megabytes(size: float) -> float:
    return size / 1e6


def per_second(milliseconds: float) -> float:
    return 1000 / milliseconds


MEASURED = (
    Measured(Metric("total_s", "latency, end to end (s)", 3, "lower")),
    Measured(Metric("first_token_s", "prefill latency, to the first token (s)", 3, "lower")),
    Measured(Metric("decode_ms", "decode (ms a token)", 2, "lower")),
    Measured(Metric("decode_ms", "decode throughput (tokens a second)", 2, "higher"), per_second),
    Measured(Metric("cache_bytes", "KV cache (MB)", 2, "lower"), megabytes),
    Measured(Metric("peak_bytes", "peak memory (MB)", 1, "lower"), megabytes),
)

POOLS = (
    "A pool of KV memory is filled with sequences of distinct prompts of about the length, which decode as one batch; "
    "× is the ratio to the full cache in the same pool, and 95 % of the decode steps are within the bounds."
)

Run = Mapping[str, Any]
"""What a measurement wrote: `model`, `rows` and what it was made on."""


def page(experiment: str, item: Item, results: Path) -> Page:
    """Everything of an item that is measured. Raises `UserError` where no method of it was measured."""
    methods = [method_config(config["method"]).name for config in settings_of(experiment, None)]
    readable, faults = _runs(results)
    runs = [chosen for of_model in readable.values() if (chosen := _latest(of_model, methods))]
    if not runs:
        raise nothing(experiment, results / "efficiency")
    grids: list[Grid] = []
    plain: list[Plain] = []
    figures = {}
    for run in runs:
        of_model = [_grid(run, methods, measured) for measured in MEASURED]
        of_model = [grid for grid in of_model if grid.columns]
        grids += of_model
        model = file_part(run["model"])
        figures[f"figure-{model}"] = partial(_draw, of_model)
        pools = [as_papers_write(row) for row in run.get("concurrency", []) if method_of(row) in ("full", *methods)]
        if pools:
            title = f"{run['model']}, sequences that decode together"
            plain.append(Plain(title, concurrency.HEADER, list(map(concurrency.texts, pools))))
            figures[f"figure-pools-{model}"] = partial(concurrency.draw, pools, title)
    frames = {"table": partial(tables.means, grids)}
    others = paper.others(experiment, grids)
    notes = list(map(_note, runs)) + ([POOLS] if plain else []) + left_out(faults)
    return Page(experiment, item.title, grids, [], others, notes, plain, frames, figures)


def _runs(results: Path) -> tuple[dict[str, list[Run]], list[str]]:
    """The sound measurements of each model, the latest first, and what is left out."""
    found, faults = efficiency_runs(results)
    runs: dict[str, list[Run]] = {}
    for _, run in reversed(found):
        runs.setdefault(run["model"], []).extend([run] if run["rows"] else [])
    return dict(sorted(runs.items())), faults


def _latest(runs: Sequence[Run], methods: Sequence[str]) -> Run | None:
    """The latest run with all methods; else the latest with any. Times of several runs are not mixed."""
    there = [(run, {method_of(row) for row in run["rows"]} & set(methods)) for run in runs]
    whole = [run for run, names in there if names == set(methods)]
    return next(iter(whole + [run for run, names in there if names]), None)


def method_of(row: Mapping[str, Any]) -> str:
    """Rows of older versions have only the name of their setting, such as `snapkv 256`."""
    return str(row.get("method") or row["setting"].split(",")[0].split(" ")[0])


def as_papers_write(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a setting such as `CompressKV 256`, where it has `compresskv 256`."""
    return {**row, "setting": row["setting"].replace(method_of(row), named(method_of(row)), 1)}


def _budget(row: Mapping[str, Any]) -> int | None:
    if "budget" in row:
        return row["budget"]
    number = row["setting"].split(",")[0].partition(" ")[2].partition(" ")[0]
    return int(number) if number.isdecimal() else None


def _grid(run: Run, methods: Sequence[str], measured: Measured) -> Grid:
    order = ["full", *methods]
    by_setting: dict[str, list[Mapping[str, Any]]] = {}
    for row in run["rows"]:
        if method_of(row) in order:
            by_setting.setdefault(row["setting"], []).append(row)
    found = []
    marked = len({row.get("protocol") for rows in by_setting.values() for row in rows}) > 1
    for name, rows in by_setting.items():
        place = rows[0]
        method, budget, protocol = method_of(place), _budget(place), str(place.get("protocol", "corrected"))
        plain = f"{method} {budget}" if budget else method
        variant = name.removeprefix(plain).strip(" ,").removeprefix(f"({protocol})").strip(" ,")
        found.append((Row(named(method), budget, protocol, variant, {}, marked), rows, order.index(method)))
    found.sort(key=lambda entry: (-(entry[0].budget or float("inf")), entry[2]))
    by_column = [_cells(rows, measured) for _, rows, _ in found]
    lengths = sorted({row["length"] for row in run["rows"]})
    columns = [label for label in map(tokens_label, lengths) if any(label in cells for cells in by_column)]
    rows_shown = filled([(row, []) for row, _, _ in found], by_column, measured.metric)
    return Grid(run["model"], "efficiency", columns, rows_shown, measured.metric)


def _cells(rows: Sequence[Mapping[str, Any]], measured: Measured) -> Cells:
    """A cell for every prompt length, of the values of all rounds; older versions left their medians alone."""
    cells: Cells = {}
    for row in rows:
        values = row.get("by_round", {}).get(measured.metric.field, [row.get(measured.metric.field)])
        there = {(f"round {place}", ""): measured.of(value) for place, value in enumerate(values) if value}
        if there:
            cells[tokens_label(row["length"])] = Cell({"rounds": there}, 0, 0)
    return cells


def _note(run: Run) -> str:
    hardware = shown_environment(run.get("environment")).get("hardware", {})
    where = ", ".join(hardware.get("gpus", [])) or f"{hardware.get('cpu')}, {hardware.get('cpu_threads')} threads"
    made = f"{run['new_tokens']} new tokens of one sequence, {run['dtype']}, {run['backend']}, on {where}"
    return (
        f"{run['model']}: {made}; "
        f"n counts rounds, which take all settings in turn. The memory of a process counts the model too."
    )


def _draw(grids: Sequence[Grid]) -> Any:
    from evals.report.curve import over_lengths

    return over_lengths(grids)
