"""What results show, from the results tree alone: `python -m evals.report results --out report` writes one HTML page,
`python -m evals.report experiment=<name>` an experiment's tables and figures.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from compresskv.errors import UserError
from compresskv.inputs import expanded
from evals.console import Arguments, outputs_take_any_text, visible
from evals.experiments import ITEMS

if TYPE_CHECKING:
    from evals.report.latex import Columns

PAGE_USAGE = "python -m evals.report <results> [--out <directory>]"


def main(arguments: list[str]) -> int:
    """Write the page, or the artefacts of one experiment, and print the paths; returns the exit code."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    if any(argument.startswith("--out") for argument in arguments) or (words and "=" not in "".join(words)):
        return _page(arguments)
    usage = f"{PAGE_USAGE}, or experiment=<one of {', '.join(ITEMS)}> [results=<directory>] [columns=tasks|groups]"
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return 0 if arguments else 2
    given = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        if unknown := [name for name in given if name not in ("experiment", "results", "columns") or not given[name]]:
            known = unknown[0] in ("experiment", "results", "columns")
            raise UserError(unknown[0], usage, why="not set" if known else "not known here")
        if "experiment" not in given:
            raise UserError("experiment", usage, why="not set")
        if (columns := given.get("columns", "tasks")) not in ("tasks", "groups"):
            raise UserError("columns", "choose tasks or groups", value=columns)
        from evals.report.artefacts import write

        for path in write(
            given["experiment"], expanded(given.get("results", "results"), "results"), cast("Columns", columns)
        ):
            print(path)
    except UserError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


def _page(arguments: list[str]) -> int:
    """Write the page of a results tree and print its path; returns the exit code."""
    parser = Arguments("python -m evals.report", PAGE_USAGE, "Write one self-contained HTML page.")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to (default: report)")
    try:
        options = parser.parse_args(arguments)
        from evals.report.html.writing import write

        print(write(expanded(options.results, "results"), expanded(options.out, "--out")))
    except UserError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    outputs_take_any_text()
    sys.exit(main(sys.argv[1:]))
