"""`python -m evals reference`: run the sweeps of the reference run, and export the part that is committed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from compresskv.errors import UserError
from evals.compose import job_from, sweep
from evals.console import signals_as_interrupts
from evals.job import Job
from evals.reference.export import export
from evals.results.measurement import measurements

SWEEPS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("sweeps.yaml").read_text(encoding="utf-8"))
"""Command lines of the sweeps by part."""

EVERYWHERE = ("model.dtype=float32",)
"""Overrides for every command line. With float32, processors with and without bfloat16 give the same tables."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing samples of the chosen parts, then export all complete settings. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="python -m evals reference", description=__doc__)
    parts = f"{', '.join(SWEEPS)}, or none; default: all. name=value is added to every sweep, such as"
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{parts} needles 'eval.lengths=[1000,2000]'")
    parser.add_argument("--data", default="hub", help="value of eval.data for LongBench; default: hub")
    parser.add_argument("--results", type=Path, default=Path("results/reference-run"), help="the folder of all results")
    parser.add_argument("--target", type=Path, default=Path("results/reference"), help="folder of the committed part")
    options = parser.parse_intermixed_args(arguments)
    signals_as_interrupts()
    overrides = [word for word in options.parts if "=" in word]
    chosen = [word for word in options.parts if "=" not in word] or list(SWEEPS)
    run_and_export(chosen, options.data, options.results, options.target, overrides)


def run_and_export(parts: Sequence[str], data: str, results: Path, target: Path, overrides: Sequence[str] = ()) -> None:
    """Run the parts, then export all complete settings. `overrides` are added to every sweep.

    If a part fails, the other parts still run, and `UserError` is raised at the end.
    """
    if unknown := [part for part in parts if part not in (*SWEEPS, "none")]:
        raise UserError("parts", f"choose from {', '.join(SWEEPS)}, or none", value=unknown[0])
    from evals.running.sweep import run

    failures = []
    for part in [part for part in parts if part != "none"]:
        given = [f"eval.data={data}"] if part == "longbench" else []
        try:
            made = jobs(part, *given, f"paths.results={results}", *overrides)
            if not (part == "efficiency" and measured(results, made)):
                run(made)
        except UserError as error:
            print(f"{part}: {error}", file=sys.stderr)
            failures.append(error)
    count = export(results, target)
    print(f"{count} settings, without texts: {target}")
    if failures:
        raise failures[0]


def jobs(part: str, *overrides: str) -> list[Job]:
    """Return all jobs of a part, with `overrides` added to each line. Raises `UserError` like a command line."""
    configs = [config for line in SWEEPS[part] for config in sweep(*EVERYWHERE, *line.split(), *overrides)]
    return [job_from(config) for config in configs]


def measured(results: Path, jobs: Sequence[Job]) -> bool:
    """Return whether a complete efficiency measurement of this number of jobs exists; it is not repeated."""
    evaluation: Any = jobs[0].eval
    rows = (1 + len(jobs)) * len(evaluation.lengths)  # including the full cache
    expected = {"rows": rows, "concurrency": rows * len(evaluation.pools)}
    made = [each.content for each in measurements(results) if each.eval == evaluation.name]
    return any(all(len(each.get(name, ())) == count for name, count in expected.items()) for each in made)


if __name__ == "__main__":
    from evals.cli import start

    start("reference")
