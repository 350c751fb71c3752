"""`python -m evals.results list|show|verify`: what is there, how far it is, and whether summaries match samples."""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from compresskv.errors import UserError
from evals.console import screen
from evals.results.store import Line, read_lines
from evals.results.summary import mean_and_interval


@dataclass(frozen=True)
class Folder:
    """One setting's folder under `runs`."""

    path: Path
    runs: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(self.runs))

    @cached_property
    def lines(self) -> dict[str, Line]:
        """Complete lines only: another process may be writing the last one."""
        text = (self.path / "samples.jsonl").read_bytes()
        if text.endswith(b"\n") or not text:
            return {line["id"]: line for line in read_lines(self.path / "samples.jsonl")}
        complete = text[: text.rfind(b"\n") + 1].decode().removesuffix("\n")
        return {line["id"]: line for line in map(json.loads, complete.split("\n") if complete else [])}

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def running(self) -> bool:
        """Whether a process holds the folder."""
        if not (self.path / ".lock").exists():
            return False
        with (self.path / ".lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @property
    def problem(self) -> str:
        """Why the summary is not that of the samples; "" if it is."""
        if self.summary is None:
            return "no summary"
        if missing := [id for id in self.summary["samples"] if id not in self.lines]:
            return f"the summary covers {len(missing)} samples that are not there"
        covered = [self.lines[id] for id in self.summary["samples"]]
        score, interval = mean_and_interval([line["score"] for line in covered])
        if (score, interval) != (self.summary["score"], self.summary["interval"]):
            return f"the summary says {self.summary['score']}, its samples {score}"
        return ""

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if self.problem:
            return self.problem
        later = len(self.lines) - len(self.summary["samples"]) if self.summary else 0
        return f"stale: {later} samples are not in the summary" if later else "complete"


def folders(results: Path, pattern: str = "") -> Iterator[Folder]:
    """The settings under `results` whose path contains `pattern`. Raises `UserError` if there are none."""
    runs = results / "runs"
    found = [Folder(path.parent, runs) for path in sorted(runs.rglob("samples.jsonl"))]
    # Calibration keeps samples, too, but no score.
    found = [folder for folder in found if pattern in folder.name and "/calibrate/" not in f"/{folder.name}/"]
    if not found:
        raise UserError(f"{runs}: no results{f' that match {pattern}' if pattern else ''}: check --results")
    yield from found


def list_(results: Path, pattern: str) -> int:
    """One row a setting."""
    shown = Table()
    for column in ("setting", "samples", "score", "state"):
        shown.add_column(column, justify="right" if column in ("samples", "score") else "left", no_wrap=True)
    for folder in folders(results, pattern):
        score = f"{folder.summary['score']:.2f}" if folder.summary else ""
        shown.add_row(folder.name, str(len(folder.lines)), score, folder.state)
    screen(200).print(shown)
    return 0


def show(results: Path, pattern: str) -> int:
    """The summaries, as one JSON list, without configuration and environment."""
    hidden = {"config", "environment", "samples", "method_in_full", "prompt"}
    found = [
        {"folder": folder.name, "state": folder.state}
        | {key: value for key, value in (folder.summary or {}).items() if key not in hidden}
        for folder in folders(results, pattern)
    ]
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


def verify(results: Path, pattern: str) -> int:
    """Name every summary that does not match its samples; 1 if there is one."""
    checked = list(folders(results, pattern))
    wrong = [(folder.name, folder.problem) for folder in checked if folder.problem]
    for name, problem in wrong:
        print(f"{name}: {problem}", file=sys.stderr)
    print(f"{len(checked) - len(wrong)} of {len(checked)} summaries match their samples")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.results", description=__doc__)
    parser.add_argument("command", choices=["list", "show", "verify"])
    parser.add_argument("pattern", nargs="?", default="", help="only settings whose path contains this")
    parser.add_argument("--results", type=Path, default=Path("results"), help="as paths.results (default: results)")
    chosen = parser.parse_args(arguments)
    try:
        return {"list": list_, "show": show, "verify": verify}[chosen.command](chosen.results, chosen.pattern)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
