"""What results show, from the results tree alone: `python -m evals.report results --out report` writes one HTML page,
`python -m evals.report experiment=table1_longbench` an experiment's tables and figures.
"""

import argparse
import sys
from pathlib import Path

from compresskv.errors import UserError
from compresskv.inputs import expanded
from evals.console import outputs_take_any_text, visible
from evals.report.items import ITEMS

PAGE_USAGE = "python -m evals.report <results> --out <directory>"


def main(arguments: list[str]) -> int:
    """Write the page, or the artefacts of one experiment, and print the paths; returns the exit code."""
    if any(argument == "--out" or argument.startswith("--out=") for argument in arguments):
        return _page(arguments)
    usage = f"{PAGE_USAGE}, or experiment=<one of {', '.join(ITEMS)}> [results=<directory>]"
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return 0 if arguments else 2
    given = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        if unknown := [name for name in given if name not in ("experiment", "results") or not given[name]]:
            raise UserError(
                unknown[0], usage, why="not known here" if unknown[0] not in ("experiment", "results") else "not set"
            )
        if "experiment" not in given:
            raise UserError("experiment", usage, why="not set")
        from evals.report.artefacts import write

        for path in write(given["experiment"], expanded(given.get("results", "results"), "results")):
            print(path)
    except UserError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


def _page(arguments: list[str]) -> int:
    """Write the page of a results tree and print its path; returns the exit code."""
    parser = argparse.ArgumentParser(usage=PAGE_USAGE, description="Write one self-contained HTML page.")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        from evals.report.html.writing import write

        print(write(expanded(options.results, "results"), expanded(options.out, "--out")))
    except UserError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    outputs_take_any_text()
    sys.exit(main(sys.argv[1:]))
