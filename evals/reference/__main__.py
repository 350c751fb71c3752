"""`python -m evals.reference`: run the sweeps of the reference run, then write what is committed of their results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compresskv.errors import UserError
from evals.console import one_sentence_endings, signals_as_interrupts
from evals.reference.export import export
from evals.reference.sweeps import SWEEPS, jobs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen parts, of which what is finished is not run again, then export all there is."""
    parser = argparse.ArgumentParser(prog="python -m evals.reference", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(SWEEPS)}, or none; default: all")
    parser.add_argument("--data", default="hub", help="LongBench, as eval.data takes it; default: hub")
    parser.add_argument("--results", type=Path, default=Path("results/reference-run"), help="the complete results")
    parser.add_argument("--target", type=Path, default=Path("results/reference"), help="what is committed of them")
    options = parser.parse_args(arguments)
    with one_sentence_endings():
        signals_as_interrupts()
        run_and_export(options.parts or list(SWEEPS), options.data, options.results, options.target)


def run_and_export(parts: Sequence[str], data: str, results: Path, target: Path, overrides: Sequence[str] = ()) -> None:
    """A part that fails does not end the others; what is complete is exported. `overrides` go to every sweep.

    Raises `UserError` at the end in the end if a part failed.
    """
    if unknown := [part for part in parts if part not in (*SWEEPS, "none")]:
        raise UserError(f"{unknown[0]}: is no part of the reference run: choose from {', '.join(SWEEPS)}, or none")
    from evals.running.sweep import run

    failures = []
    for part in parts:
        if part == "none" or (part == "efficiency" and any(results.glob("efficiency/*/*/efficiency.json"))):
            continue  # a measurement of time cannot be resumed, and is not repeated
        given = [f"eval.data={data}"] if part == "longbench" else []
        try:
            run(jobs(part, *given, f"paths.results={results}", *overrides))
        except UserError as error:
            print(f"{part}: {error}", file=sys.stderr)
            failures.append(error)
    count = export(results, target)
    print(f"{count} settings, without texts: {target}")
    if failures:
        raise failures[0]


if __name__ == "__main__":
    main()
