"""Needle in a haystack: columns by prompt length, or by needle and haystack, and heatmaps over length and depth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from compresskv.budget import smallest_first, written
from evals.niah.cells import failed_at, length_of, lengths, means
from evals.niah.needles import needles
from evals.results.means import USUAL, Asked, Cells, Values, add, average, by_line, cells, sampled
from evals.results.record import Record, covered_lines
from evals.results.schema import Count, Line, Number, exactly
from evals.results.shows import own_fields
from evals.tables import text
from evals.tables.table import AVERAGE, Metric, Row, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@exactly
class FIELDS(TypedDict, total=False):
    length: Count
    depth: Number


SECTION = Section(
    "needles",
    "Needles",
    "Mean score by prompt length (across) and depth of the needle in per cent (down). All panels share the scale from "
    "0 to 100.",
)


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Return tables by prompt length; in the view `needles`, by kind of needle over all haystacks, and by haystack."""
    if asked.view == "needles":
        kinds = ["configured", *(needle.kind for needle in needles(10))]
        columns = [*kinds, *dict.fromkeys(f"in {haystack(record)}" for record in records), AVERAGE]
        shown = sampled(records, asked, _needles, order=columns.index, apart_by=haystack)
        return [replace(table, compared=table.columns) for table in shown]
    xs = lengths(records)
    return sampled(records, asked, _lengths, order=xs.get, failed=failed_at, xs=xs, caption=_caption(records))


def _lengths(records: Sequence[Record], metric: Metric) -> Cells:
    """Return a cell for every prompt length, and their average."""
    return by_line(records, metric, length_of) | average(records, metric)


def _needles(records: Sequence[Record], metric: Metric) -> Cells:
    columns: dict[str, Values] = {}
    for record in records:
        place = haystack(record)
        for line in record.covered:
            for column in (_kind(record, line), f"in {place}", AVERAGE):
                add(columns, column, place, record, line, metric)
    return cells(columns)


def haystack(record: Record) -> str:
    """Return a short name of a record's haystack: the last part of each of its locations."""
    named = record.config.get("eval", {}).get("haystack", "")
    places = named.split(",") if isinstance(named, str) else named
    return " and ".join(str(place).rstrip("/").rpartition("/")[2].partition(".")[0] for place in places)


def _kind(record: Record, line: Line) -> str:
    """Return the kind of a line's needle, from the number in its id; "configured" for the user's own needle."""
    known = needles(10)
    number = line["id"].rpartition("-N")[2]
    if not number.isdecimal() or int(number) >= len(known):
        return "configured"
    if int(number) == 0 and record.config.get("eval", {}).get("needle") != known[0].needle:
        return "configured"
    return known[int(number)].kind


def _caption(records: Sequence[Record]) -> str:
    """Return notes on the prompts: needles per cell, misplaced needles, repeated haystacks; "" if no note applies."""
    prompts = {line["id"]: line for line in covered_lines(records)}
    places = {(line.get("length"), line.get("depth")) for line in prompts.values()}
    notes = []
    if len(prompts) > len(places):
        several = {id.rpartition("-")[2] for id in prompts}
        notes.append(f"{len(prompts)} prompts in {len(places)} cells, each the mean of up to {len(several)} needles")
    if misplaced := sum(bool(line.get("misplaced")) for line in prompts.values()):
        notes.append(f"in {misplaced} of {len(prompts)} prompts the needle is more than 2 % from the requested depth")
    if repeated := sum(bool(line.get("haystack_repeats")) for line in prompts.values()):
        notes.append(f"in {repeated} of {len(prompts)} prompts the haystack is repeated")
    return "; ".join(notes)


def notes(records: Sequence[Record], tables: Sequence[Table], view: str = "") -> list[str]:
    """Return Kendall's tau-b between each column's and the average's order of methods, by budget, in the view
    `needles`."""
    found = []
    for table in tables if view == "needles" else ():
        for rows in table.comparable:
            budget, when = rows[0].budget, rows[0].when
            whole = [row for row in rows if len(row.cells) == len(table.columns)]
            whole = [row for row in whole if row.cells[AVERAGE].same_prompts(whole[0].cells[AVERAGE])]
            if budget is None or len(whole) < 3:
                continue
            other = "" if when == "prompt" else f" ({when})"
            shown = [f"{column} {_tau(whole, column)}" for column in table.columns if column != AVERAGE]
            found.append(
                f"{table.model}, {table.metric.field}, budget {budget}{other}: Kendall's tau-b between the "
                f"order of {len(whole)} methods in each column and in the average: {', '.join(shown)}."
            )
    return found


def _tau(rows: Sequence[Row], column: str) -> str:
    """Return Kendall's tau-b of a column with the average; – if all methods are equal."""
    from scipy.stats import kendalltau

    tau = kendalltau([row.cells[column].mean for row in rows], [row.cells[AVERAGE].mean for row in rows]).statistic
    return text.NONE if tau != tau else f"{tau:.2f}"


def figure(table: Table) -> "Figure":
    """Draw the heatmaps of a table of scores."""
    from evals.niah.heatmap import heatmaps

    return heatmaps(table)


def panels(table: Table) -> dict[str, Any]:
    """Return the heatmaps of the page. `cells` are indexed by depth, then by length; None means no samples."""
    of_rows = [means(row.records) for row in table.rows]
    across = sorted({length for of_row in of_rows for length, _ in of_row})
    depths = sorted({depth for of_row in of_rows for _, depth in of_row})
    shown = []
    in_order = sorted(zip(table.rows, of_rows, strict=True), key=lambda each: smallest_first(each[0].budget))
    for row, of_row in in_order:
        values = [[of_row.get((length, depth)) for length in across] for depth in depths]
        matrix = [[None if value is None else round(value, 1) for value in line] for line in values]
        cell = row.cells[table.overall]
        panel = {"method": row.label, "budget": written(row.budget), "mean": cell.mean, "n": cell.n, "cells": matrix}
        shown.append(panel | ({"partial": f"{cell.counted} of {cell.of}"} if cell.partial else {}))
    columns, rows = [text.tokens(length) for length in across], [f"{depth:g}" for depth in depths]
    return {"model": table.model, "columns": columns, "rows": rows, "corner": "depth", "panels": shown}


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    """Return the needle's position and, for the first needle, its question and answer, since lines have no prompts."""
    asked = {name: prompt[name] for name in ("question", "answer_prefix", "answer") if prompt.get(name)}
    of_line = {name: value for name, value in own_fields(line).items() if name in ("length", "depth", "actual_depth")}
    return of_line | (asked if line["id"].endswith("-N0") else {})


def traits(of_eval: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that distinguish runs: the haystack, and whether there are several needles."""
    return {"haystack": of_eval.get("haystack"), "several": of_eval.get("needles", 1) > 1}
