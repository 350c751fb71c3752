"""`python -m evals report --results <folder>` writes a results tree as one HTML page.
`python -m evals report experiment=<name> --results <folder>` writes the tables and figures of one experiment.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

from compresskv.errors import UserError
from compresskv.inputs import expanded
from evals.console import Arguments
from evals.experiments import ITEMS
from evals.tables.equivalence import checked_margin
from evals.tables.table import KNOWN

COLUMNS = ("tasks", "groups")


def main(arguments: list[str]) -> int:
    """Write the page, or the artefacts of one experiment, print their paths, and return the exit code."""
    parser = Arguments(
        prog="python -m evals report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="experiment=<name>", help=f"one of {', '.join(ITEMS)}, or your own experiment"
    )
    parser.add_argument("--results", help="the results tree; default: results")
    parser.add_argument("--columns", help=f"columns of LaTeX tables: tasks, or groups of tasks; default: {COLUMNS[0]}")
    parser.add_argument("--out", type=Path, help="folder for the page; default: report")
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=MARGIN",
        help="largest difference of means that counts as equivalent, such as score=1 or kl=0.05; may be repeated\n"
        "(default: 2 for scores, 0.02 for the other metrics of fidelity=true)",
    )
    options = parser.parse_intermixed_args(arguments)
    words = [word if "=" in word else f"results={word}" for word in options.words]
    given = _named(words, ("experiment", "results", "columns"))
    given |= {
        name: value for name, value in vars(options).items() if name in ("results", "columns") and value is not None
    }
    margins = {name: _margin(name, value) for name, value in _named(options.margin, KNOWN, "--margin").items()}
    for path in _written(given, options.out, margins):
        print(path)
    return 0


def _named(words: Sequence[str], known: Iterable[str], field: str | None = None) -> dict[str, str]:
    """Return the values of words `name=value` by name. Raises `UserError`, by default for the `field` of that name."""
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or name in found or not value:
            why = "given twice" if name in found else "no value" if name in known else "not known"
            raise UserError(field or name, f"give {', '.join(f'{each}=…' for each in known)}", value=word, why=why)
        found[name] = value
    return found


def _margin(metric: str, value: str) -> float:
    try:
        return checked_margin("--margin", float(value))
    except ValueError:
        raise UserError("--margin", f"give a number, such as {metric}=1", value=value, why="not a number") from None


def _written(given: dict[str, str], out: Path | None, margins: dict[str, float]) -> list[Path]:
    """Write the page or the artefacts, and return their paths. Raises `UserError` for bad options."""
    results, columns = expanded(given.get("results", "results"), "results"), given.get("columns", COLUMNS[0])
    if "experiment" not in given:
        if "columns" in given:
            raise UserError("columns", "add experiment=<name>", value=columns, why="the page always has all columns")
        from evals.report.html.writing import write as write_page

        return [write_page(results, expanded(out or "report", "--out"), margins)]
    if out:
        why = "tables and figures go to artefacts/ in the results tree"
        raise UserError("--out", "leave it out", value=out, why=why)
    if columns not in COLUMNS:
        raise UserError("columns", f"choose {' or '.join(COLUMNS)}", value=columns)
    from evals.report.artefacts import write

    return write(given["experiment"], results, cast(Literal["tasks", "groups"], columns), margins)


if __name__ == "__main__":
    from evals.cli import start

    start("report")
