"""`python -m evals report --results <folder>` writes a results tree as one HTML page.
`python -m evals report experiment=<name> --results <folder>` writes the tables and figures of one experiment.
"""

import argparse
from pathlib import Path

from compresskv.errors import UserError
from compresskv.inputs import expanded
from evals.console import Arguments
from evals.experiments import ITEMS
from evals.tables.equivalence import checked_margin
from evals.tables.table import KNOWN

COLUMNS = ("tasks", "groups")


def main(arguments: list[str]) -> int:
    """Write the page, or the artefacts of one experiment, print their paths, and return the exit code.

    Raises `UserError`, which `python -m evals` prints.
    """
    parser = Arguments(
        prog="python -m evals report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="experiment=<name>", help=f"one of {', '.join(ITEMS)}, or your own")
    parser.add_argument("--results", help="the results tree; default: results")
    parser.add_argument("--columns", help=f"columns of LaTeX tables: tasks, or groups of them; default: {COLUMNS[0]}")
    parser.add_argument("--out", type=Path, help="folder for the page; default: report")
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=MARGIN",
        help="largest difference of means that counts as equivalent, such as score=1 or kl=0.05; may be repeated\n"
        "(default: 2 for scores, 0.02 for the others that fidelity=true measures)",
    )
    options = parser.parse_intermixed_args(arguments)
    named = {name: value for name in ("results", "columns") if (value := getattr(options, name)) is not None}
    for path in _written(_given(options.words) | named, options.out, _margins(options.margin)):
        print(path)
    return 0


def _given(words: list[str]) -> dict[str, str]:
    """Parse the words into options: each is `name=value` or the folder of the results tree."""
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=") if "=" in word else ("results", "=", word)
        if name not in ("experiment", "results", "columns") or name in given:
            raise UserError(
                name, "see python -m evals report --help", why="given twice" if name in given else "not known"
            )
        if not value:
            raise UserError(name, "give it a value", why="not set")
        given[name] = value
    return given


def _margins(words: list[str]) -> dict[str, float]:
    """Return the margins by metric. Raises `UserError` for a word that is not a margin."""
    margins: dict[str, float] = {}
    for word in words:
        metric, _, value = word.partition("=")
        if metric not in KNOWN or metric in margins:
            why = "given twice" if metric in margins else "not a metric of every evaluation"
            raise UserError("--margin", f"give {', '.join(f'{name}=…' for name in KNOWN)}", value=word, why=why)
        try:
            number = float(value)
        except ValueError:
            raise UserError("--margin", f"give a number, such as {metric}=1", value=word, why="not a number") from None
        margins[metric] = checked_margin("--margin", number)
    return margins


def _written(given: dict[str, str], out: Path | None, margins: dict[str, float]) -> list[Path]:
    """Write the page or the artefacts, and return their paths. Raises `UserError` for bad options."""
    results, columns = expanded(given.get("results", "results"), "results"), given.get("columns")
    if "experiment" not in given:
        if columns:
            raise UserError("columns", "add experiment=<name>", value=columns, why="the page has all columns")
        from evals.report.html.writing import write as write_page

        return [write_page(results, expanded(out or "report", "--out"), margins)]
    if out:
        raise UserError(
            "--out", "leave it out", value=out, why="tables and figures go to artefacts/ in the results tree"
        )
    from evals.report.artefacts import write

    if columns == "groups":
        return write(given["experiment"], results, "groups", margins)
    if columns not in (None, "tasks"):
        raise UserError("columns", f"choose {' or '.join(COLUMNS)}", value=columns)
    return write(given["experiment"], results, margins=margins)


if __name__ == "__main__":
    from evals.__main__ import start

    start("report")
