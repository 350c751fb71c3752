"""`python -m evals.results list|show|verify`: what is there, how far it is, and whether summaries match samples."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from compresskv.errors import UserError
from evals.console import screen
from evals.results.record import Record, records

HIDDEN = {"config", "environment", "samples", "method_in_full", "prompt"}
"""Fields of a summary that `show` leaves out."""


def list_(chosen: Sequence[Record]) -> int:
    """One row a setting."""
    shown = Table()
    for column in ("setting", "samples", "score", "state"):
        shown.add_column(column, justify="right" if column in ("samples", "score") else "left", overflow="fold")
    for record in chosen:
        score = f"{record.summary['score']:.2f}" if record.summary else ""
        # Names are not ours: as `Text`, brackets in them are no markup.
        shown.add_row(Text(record.name), str(len(record.samples)), score, Text(record.state))
    screen(200).print(shown)
    return 0


def show(chosen: Sequence[Record]) -> int:
    """The summaries, as one JSON list, without configuration and environment."""
    content = []
    for record in chosen:
        fields = {key: value for key, value in (record.summary or {}).items() if key not in HIDDEN}
        content.append({"folder": record.name, "state": record.state, **fields})
    print(json.dumps(content, indent=2, ensure_ascii=False))
    return 0


def verify(chosen: Sequence[Record]) -> int:
    """Name every fault, and count what is sound; 1 if there is a fault."""
    faulty = 0
    for record in chosen:
        for problem in record.problems:
            print(f"{record.name}: {problem}", file=sys.stderr)
        faulty += bool(record.problems)
    summaries = sum(record.summary is not None for record in chosen)
    sound = sum(record.summary is not None and not record.problems for record in chosen)
    print(f"{sound} of {summaries} summaries match their samples; {faulty} of {len(chosen)} folders have a fault")
    if unchecked := sum(record.unchecked for record in chosen):
        print(f"{unchecked} lines of older versions have no checksum: a changed text in them would not be noticed")
    return 1 if faulty else 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evals.results", description=__doc__)
    parser.add_argument("command", choices=["list", "show", "verify"])
    parser.add_argument("pattern", nargs="?", default="", help="only settings whose path contains this")
    parser.add_argument("--results", type=Path, default=Path("results"), help="as paths.results (default: results)")
    options = parser.parse_args(arguments)
    try:
        chosen = records(options.results, options.pattern)
        if not chosen:
            matching = f" that match {options.pattern}" if options.pattern else ""
            raise UserError(f"{options.results / 'runs'}: no results{matching}: check --results")
        code = {"list": list_, "show": show, "verify": verify}[options.command](chosen)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read this, such as `head`, has had enough; Python must not write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
