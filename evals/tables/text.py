"""Format numbers, intervals, marks and comparisons as text, for all output formats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compresskv.budget import Budget
from evals.console import visible
from evals.kinds import TITLES
from evals.tables.table import Cell, Table

if TYPE_CHECKING:
    from evals.tables.certify import Tried
    from evals.tables.compare import Verdict

SECOND_HAND = "second-hand"
"""Source of a published number that was quoted by others and not read in the paper itself."""

NONE = "–"
"""Text for a missing value."""

PARTIAL = "† partial: averaged over that number of samples, and never ranked."
NO_INTERVAL = "A mean without an interval is over a single sample, or one of its tasks has a single sample."

Bounds = tuple[float, float] | None


def title_of(evaluation: str) -> str:
    """Return the title of an evaluation."""
    return TITLES.get(evaluation, evaluation)


def heading(table: Table) -> str:
    metric = f": {table.metric.title}" if table.metric.title else ""
    return f"{table.model}, {title_of(table.eval)}{metric}"


def figure_title(table: Table, above: str = "") -> str:
    """Return a figure's title: its content, the number of samples, and the mark of partial means."""
    overall = [row.cells[table.overall] for row in table.rows if table.overall in row.cells]
    numbers = sorted({cell.n for cell in overall})
    shown = [f"n = {'–'.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))}"] if numbers else []
    shown += ["with 95 % intervals"] if any(cell.interval for cell in overall) else []
    shown += ["† and hollow: partial"] if any(cell.partial for cell in table.cells) else []
    return f"{above or heading(table)}\n{', '.join(shown)}"


def budget(kept: Budget | None) -> str:
    return "full" if kept is None else str(kept)


def number(value: float | None, digits: int = 2, unit: float = 1.0) -> str:
    return NONE if value is None else f"{value / unit:.{digits}f}"


def megabytes(size: float | None, digits: int = 2) -> str:
    return number(size, digits, 1e6)


def mean(cell: Cell) -> str:
    return number(cell.mean, cell.digits)


def bounds(interval: Bounds, digits: int = 2, form: str = "[{}, {}]") -> str:
    """Format an interval with one digit less than its mean; "" for no interval."""
    return "" if interval is None else form.format(*(f"{bound:z.{digits - 1}f}" for bound in interval))


def partial(cell: Cell) -> str:
    """Format how many of the samples and tasks a partial cell has; "" for other cells."""
    missing_tasks = f", {len(cell.strata)} of {cell.tasks} tasks" if len(cell.strata) < cell.tasks else ""
    return f"†{cell.counted} of {cell.of}{missing_tasks}" if cell.partial else ""


def compared(cell: Cell) -> str:
    """Format the published number with the difference or why they cannot be compared; "" if nothing was published."""
    if cell.published is None:
        return ""
    source = f", {cell.source}" if cell.source == SECOND_HAND else ""
    difference = f"not comparable: {cell.apart}" if cell.difference is None else f"{cell.difference:+z.2f}"
    return f"paper {cell.published:.2f}{source}, {difference}"


def signed(value: float, digits: int) -> str:
    """Format a rounded number with its sign."""
    return f"{value:+z.{digits}f}"


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


def probability(p: float) -> str:
    """Format a p-value; small p-values are shown as "< 0.001" instead of 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def tokens(count: int) -> str:
    """Format a number of tokens, such as 4K."""
    return f"{count / 1000:g}K" if count >= 1000 else str(count)


VERDICT = (
    *("model", "budget", "comparison", "of", "difference", "95 % interval", "p (Holm)", "p (equivalence)", "n"),
    *("verdict", "n needed"),
)
"""Columns of `verdict`."""


def verdict(found: Verdict) -> list[str]:
    difference, interval, p, equivalence, n, needed = numbers(found)
    of = found.column if found.metric == "score" else f"{found.metric}, {found.column}"
    place = [found.model, budget(found.budget), versus(found), of]
    return [*place, difference, interval, p, equivalence, n, found.words, needed]


def versus(found: Verdict) -> str:
    return f"{found.second} − {found.first}"


def numbers(found: Verdict) -> list[str]:
    """Format the difference, its interval, both p-values, the number of samples, and the number that would decide."""
    return [
        signed(found.mean, found.digits),
        bounds(found.interval, found.digits) or NONE,
        probability(found.p),
        NONE if found.equivalence is None else probability(found.equivalence),
        f"{'†' if found.partial else ''}{found.n}",
        NONE if found.needed is None else str(found.needed),
    ]


def certificate(method: str, smallest: Tried | None, failed: Tried | None) -> list[str]:
    """Return a row: a method, its smallest safe budget with its loss, and why the next smaller budget is not safe."""
    lacking = "" if failed is None else f"{budget(failed.budget)} at n = {failed.n}: {_lacking(failed)}"
    if smallest is None:
        return [method, "none", NONE, NONE, NONE, lacking]
    n = f"{'†' if smallest.partial else ''}{smallest.n}"
    return [method, budget(smallest.budget), f"{smallest.loss:z.3g}", f"{smallest.bound:.3g}", n, lacking]


def _lacking(failed: Tried) -> str:
    loss = f"its loss is {failed.loss:z.3g}"
    if failed.n < 2:
        return f"{loss}, and one sample has no spread"
    return f"{loss}, more samples do not help" if failed.needed is None else f"{loss}, about {failed.needed} needed"


def file_part(name: str) -> str:
    """Convert a `name` from a results tree to a part of a file name that cannot lead to another folder."""
    safe = "".join(character if character.isprintable() and character not in "/\\" else "-" for character in name)
    safe = safe.encode()[:200].decode(errors="ignore")
    return safe if safe == name else f"{safe}-{hashlib.sha256(visible(name).encode()).hexdigest()[:8]}"


def left_out(faults: Sequence[str]) -> list[str]:
    """Return a sentence that lists the faults of files that are left out; empty without faults."""
    if not faults:
        return []
    more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
    return [f"Left out, because their files are damaged or were changed: {'; '.join(faults[:5])}{more}."]


def pivoted(rows: Sequence[tuple[Sequence[str], str, str]]) -> tuple[list[str], list[list[str]]]:
    """Pivot (place, column, value) to the list of columns, and a row for each place with its values."""
    columns = list(dict.fromkeys(column for _, column, _ in rows))
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for place, column, value in rows:
        table.setdefault(tuple(place), {})[column] = value
    return columns, [[*place, *(values.get(column, "") for column in columns)] for place, values in table.items()]


def hardware(environment: Mapping[str, Any]) -> str:
    machine = environment.get("hardware", {})
    return ", ".join(machine.get("gpus", [])) or f"{machine.get('cpu')}, {machine.get('cpu_threads')} threads"
