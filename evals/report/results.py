"""`python -m evals results list|show|verify|compare`: list results, check their files, and compare settings.

`python -m evals results certify --metric kl --loss 0.1` names the smallest safe budget of each method.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from compresskv.errors import UserError
from evals.console import Arguments, plain, screen, visible
from evals.results.chosen import settings_named
from evals.results.compare import comparisons
from evals.results.record import Record
from evals.tables import text
from evals.tables.certify import Tried
from evals.tables.compare import NEEDED, TESTS, Comparison, Verdict, words
from evals.tables.equivalence import checked_margin
from evals.tables.table import Metric

SUBJECT = "compresskv"
"""Default of `--against` for `compare`."""

EVERY = "all"
"""Value of `--against` that compares all pairs of settings."""

AGAINST = (
    *("budget", "second − first", "difference", "95 % interval", "p", "p (equivalence)", "n", "n needed", "verdict"),
)
"""Columns of a comparison with one method."""

PAIRS = ("second − first", "difference", "95 % interval", "p", "p (equivalence)", "verdict", "n needed")
"""Columns of a comparison of all pairs."""

TEXTS = ("setting", "state", "second − first", "verdict", "group", "method", "not certified")
"""Columns that are aligned on the left."""

HIDDEN = {"config", "environment", "samples", "method_in_full", "prompt"}
"""Fields of a summary that `show` leaves out."""

TAKES = {
    "compare": ("metric", "against", "margin", "csv", "latex"),
    "certify": ("metric", "loss", "confidence"),
}
"""The options of each command that has options."""

LONG = 1000
"""Maximum number of pairs that are printed as a table with borders."""


def printed(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", caption: str = "") -> Table:
    """Return a table to print."""
    table = Table(title=plain(title) if title else None, caption=caption or None)
    for column in columns:
        table.add_column(plain(column), justify="left" if column in TEXTS else "right", overflow="fold")
    for cells in rows:
        table.add_row(*map(plain, cells))
    return table


def list_(chosen: Sequence[Record]) -> int:
    """Print a table with one row per setting."""
    rows = [
        (each.title, str(len(each.samples)), f"{each.summary['score']:.2f}" if each.summary else "", each.state)
        for each in chosen
    ]
    screen(200).print(printed(("setting", "samples", "score", "state"), rows))
    return 0


def show(chosen: Sequence[Record]) -> int:
    """Print the summaries as one JSON list, without the fields in `HIDDEN`."""
    content = []
    for record in chosen:
        fields = {key: value for key, value in (record.summary or {}).items() if key not in HIDDEN}
        named = {"eval": record.eval, "protocol": record.protocol, "method": record.method} if fields else {}
        content.append({"folder": record.name, "state": record.state, **fields, **named})
    shown = json.dumps(content, indent=2, ensure_ascii=False)
    # JSON escapes only the control characters below space.
    print(re.sub("[\x7f-\x9f]", lambda control: f"\\u{ord(control[0]):04x}", shown))
    return 0


def verify(chosen: Sequence[Record]) -> int:
    """Print every fault and the number of sound summaries. Return 1 if there is a fault, else 0."""
    faulty = 0
    for record in chosen:
        for problem in record.problems:
            print(visible(f"{record.name}: {problem}"), file=sys.stderr)
        faulty += bool(record.problems)
    summaries = sum(record.summary is not None for record in chosen)
    sound = sum(record.summary is not None and not record.problems for record in chosen)
    print(f"{sound} of {summaries} summaries match their samples; {faulty} of {len(chosen)} folders have a fault")
    if failed := sum(len(record.failures) for record in chosen):
        print(f"{failed} samples failed: run the same command again to repeat them")
    if unchecked := sum(record.unchecked for record in chosen):
        print(f"{unchecked} lines of older versions have no checksum, so changes of their texts cannot be detected")
    if unnamed := sum(record.unnamed for record in chosen):
        print(
            f"{unnamed} lines of older versions do not name their setting, so lines of another setting cannot be "
            f"detected"
        )
    return 1 if faulty else 0


def compare(chosen: Sequence[Record], options: argparse.Namespace) -> int:
    """Compare one method with every other method of its budget, as the report page does, or all pairs of settings."""
    evicting = {record.method for record in chosen if record.budget is not None}
    metric = options.metric or "score"
    if options.margin is not None:
        checked_margin("--margin", options.margin)
    method = options.against or (SUBJECT if SUBJECT in evicting and len(evicting) > 1 else EVERY)
    if method != EVERY:
        return compare_against(chosen, metric, method, options)
    for name in ("csv", "latex"):
        if path := getattr(options, name):
            raise UserError(
                f"--{name}",
                "name a method with --against",
                value=path,
                why="comparisons of all pairs cannot be written to a file",
            )
    return compare_all(chosen, metric, options.margin)


def compare_against(chosen: Sequence[Record], metric: str, method: str, options: argparse.Namespace) -> int:
    """Print the comparisons of a method for each task and over all tasks. Write them to the files in `options`."""
    from evals.report.against import against, question
    from evals.report.csv import comparisons as frame
    from evals.report.csv import csv_text
    from evals.report.latex import PACKAGES
    from evals.report.latex import comparisons as floats

    found = against(chosen, metric, method, options.margin)
    every = [verdict for _, verdicts in found for verdict in verdicts]
    margins = {verdict.margin for verdict in every}
    family = question(method).family(
        [Metric(metric, margin=each) for each in margins], "model, evaluation, protocol, metric and column"
    )
    console = screen(160)
    for title, verdicts in found:
        rows = [(text.budget(each.budget), text.versus(each), *text.numbers(each), each.words) for each in verdicts]
        console.print(printed(AGAINST, rows, title))
    console.print(plain(family + _partial(every)))
    if options.csv:
        _write("--csv", options.csv, csv_text(frame(every)))
    if options.latex:
        latex = visible("\n".join([PACKAGES, *floats(every, family, f"tab:{method}-{metric}")]))
        _write("--latex", options.latex, latex)
    return 0


def _partial(found: Iterable[Verdict | Tried]) -> str:
    return " †: over part of the samples." if any(each.partial for each in found) else ""


def _write(option: str, path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise UserError(option, "name a file in an existing folder", value=path, why=why) from error


def compare_all(chosen: Sequence[Record], metric: str, margin: float | None = None) -> int:
    """Print the settings of each task with their groups, and the paired verdict on every pair of settings."""
    compared = comparisons(chosen, metric, margin)
    if not any(comparison.pairs for comparison in compared):
        raise UserError(
            "--metric",
            "choose a numeric field of samples.jsonl, such as score, and settings that were run on the same samples",
            value=metric,
            why="no two settings of a task have this field on the same samples"
            + "".join(f" ({comparison.title}: {_left_out(comparison)})" for comparison in compared[:1]),
        )
    console = screen(160)
    for comparison in compared:
        settings = []
        for name in comparison.values:
            mean, bounds = comparison.mean(name), _bounds(comparison.interval(name))
            settings.append((name, str(comparison.n), f"{mean:.4g}", bounds, comparison.letters(name)))
        columns = ("setting", "n", metric, "95 % interval", "group")
        console.print(
            printed(columns, settings, comparison.title, "settings that share a letter are not significantly different")
        )
        if note := _left_out(comparison):
            console.print(plain(f"left out: {note}"))
        pairs, about_p = list(_pairs(comparison)), _about_p(comparison)
        if len(pairs) > LONG:
            for cells in _aligned([PAIRS, *pairs]):
                print(cells)
            print(about_p, end="\n\n")
        elif pairs:
            console.print(printed(PAIRS, pairs, caption=about_p))
    return 0


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table without borders: rich needs a minute to lay out ten thousand rows."""
    shown = [[visible(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for cells in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _left_out(comparison: Comparison) -> str:
    """Describe what a comparison leaves out because one id has several prompts or weights; "" if nothing."""
    parts = []
    if comparison.left_out:
        parts.append(f"{comparison.left_out} samples whose prompt or weights differ between settings with the same id")
    if comparison.apart:
        parts.append(f"{', '.join(comparison.apart)} (their samples have other prompts or weights under the same ids)")
    return "; ".join(parts)


def _about_p(comparison: Comparison) -> str:
    margin = "" if comparison.margin is None else f"Margin: {comparison.margin:g}. "
    return f"{TESTS}all {len(comparison.pairs)} pairs of this table. {margin}{NEEDED}"


def _pairs(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """Yield the cells of every pair, in the order of `PAIRS`."""
    for pair in comparison.pairs:
        paired = pair.difference
        equivalence = text.NONE if comparison.margin is None else f"{paired.equivalence:.3g}"
        yield (
            f"{pair.second} − {pair.first}",
            f"{paired.mean:+z.4g}",
            _bounds(paired.interval),
            f"{pair.p:.3g}",
            equivalence,
            words(pair.outcome, comparison.margin),
            text.NONE if paired.deciding is None else str(paired.deciding),
        )


def certify(chosen: Sequence[Record], options: argparse.Namespace) -> int:
    """Print the smallest certified budget of each method, and why the next smaller budget is not certified."""
    from evals.report.against import certified

    if options.loss is None:
        raise UserError("--loss", "give the largest loss that you accept, such as 2 (points) or 0.1 (nats)")
    metric, confidence = options.metric or "score", 0.95 if options.confidence is None else options.confidence
    found, notes = certified(chosen, metric, options.loss, confidence)
    columns = ("method", "smallest budget", "loss", f"upper bound ({100 * confidence:g} %)", "n", "not certified")
    rows: dict[str, list[list[str]]] = {}
    for each in found:
        title = f"{each.model} · {text.title_of(each.eval)} · {each.protocol}"
        rows.setdefault(title, []).append(text.certificate(each.method, each.smallest, each.failed))
    console = screen(160)
    for title, of_one in rows.items():
        console.print(printed(columns, of_one, title))
    console.print(
        plain(
            f"Certified: the mean loss of {metric} against the full cache is below {options.loss:g} with nominally "
            f"{100 * confidence:g} % confidence for each method, by a paired one-sided test. Budgets are tried from "
            f"the largest down, until one fails.{_partial(tried for each in found for tried in each.tried)}"
        )
    )
    for note in notes:
        console.print(plain(note))
    return 0


def _bounds(interval: tuple[float, float] | None) -> str:
    return text.NONE if interval is None else f"{interval[0]:z.4g} to {interval[1]:z.4g}"


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code. Raises `UserError`."""
    parser = Arguments(prog="python -m evals results", description=__doc__)
    parser.add_argument("command", choices=[*TAKES, "list", "show", "verify"])
    parser.add_argument(
        "named",
        nargs="?",
        default="",
        help="a results tree, a folder below its runs/, or a part of the settings' paths",
    )
    parser.add_argument("--results", help="the results tree (default: results)")
    parser.add_argument("--metric", help="compare and certify: the field of samples to use (default: score)")
    parser.add_argument(
        "--against",
        help="compare: the method that is compared with all other methods at the same budget; all: compare every pair "
        "of settings (default: compresskv, if the results have other methods)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        help="compare: largest difference of means that counts as equivalent, in the metric's unit (default: 2 for "
        "scores, 0.02 for the other metrics of fidelity=true)",
    )
    parser.add_argument("--loss", type=float, help="certify: limit of a budget's mean loss against the full cache")
    parser.add_argument("--confidence", type=float, help="certify: confidence between 0.5 and 1 (default: 0.95)")
    parser.add_argument("--csv", type=Path, help="compare: also write the comparisons to this CSV file")
    parser.add_argument("--latex", type=Path, help="compare: also write the comparisons to this file as LaTeX tables")
    options = parser.parse_args(arguments)
    taken = TAKES.get(options.command, ())
    for name in dict.fromkeys(name for names in TAKES.values() for name in names):
        if (value := getattr(options, name)) is not None and name not in taken:
            use = " or ".join(command for command, names in TAKES.items() if name in names)
            why = f"{options.command} does not have this option"
            raise UserError(f"--{name}", f"leave it out, or use {use}", value=value, why=why)
    chosen = settings_named(options.results, options.named)
    if options.command in TAKES:
        return {"compare": compare, "certify": certify}[options.command](chosen, options)
    return {"list": list_, "show": show, "verify": verify}[options.command](chosen)
