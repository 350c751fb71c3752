"""`python -m evals.report experiment=table1_longbench`: an experiment's tables and figures, from results alone."""

import sys
from pathlib import Path

from compresskv.errors import UserError
from evals.report.items import ITEMS


def main(arguments: list[str]) -> int:
    """Write the artefacts of one experiment and print their paths; returns the exit code."""
    usage = f"python -m evals.report experiment=<one of {', '.join(ITEMS)}> [results=<directory>]"
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return 0 if arguments else 2
    given = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        if unknown := [name for name in given if name not in ("experiment", "results") or not given[name]]:
            raise UserError(f"{unknown[0]}: is not known here: {usage}")
        if "experiment" not in given:
            raise UserError(f"experiment: is not set: {usage}")
        from evals.report.artefacts import write

        for path in write(given["experiment"], Path(given.get("results", "results")).expanduser()):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
