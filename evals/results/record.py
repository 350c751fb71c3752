"""A setting's folder as its files say it is, whatever version wrote them: what reports, loggers and notebooks read."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compresskv.budget import Budget, budget_from
from compresskv.methods import label_of
from compresskv.protocol import protocol_label
from evals.kinds import kind_of, reserved
from evals.results.reader import SettingFiles
from evals.results.schema import NAMED, Line
from evals.results.verify import failed_of, has_scores, problems_of

FILES = ("samples.jsonl", "summary.json", "config.yaml")
"""What makes a folder that of a setting."""


@dataclass(frozen=True)
class Record(SettingFiles):
    """The files of a setting, what it is called, and whether it is sound."""

    @property
    def group(self) -> tuple[str, ...]:
        """Model, evaluation, task and protocol, by the path alone: the settings of a group ran on the same prompts."""
        return self.path.parts[-len(NAMED) : -2]

    @property
    def title(self) -> str:
        """The folder's path, and in brackets what the setting is where the names in its path say something else."""
        known = Path(self.name).parts
        other = [what for what in (self.eval, self.protocol, self.method) if what not in known]
        return f"{self.name} ({', '.join(other)})" if other and len(known) == len(NAMED) else self.name

    @property
    def digest(self) -> str:
        """The hash in the folder's name."""
        return self.path.name.rpartition("-")[2]

    @property
    def model(self) -> str:
        return self._named("model")

    @cached_property
    def eval(self) -> str:
        """The evaluation's name; where that is the name of a built-in one that it is not, with what it is."""
        name, kind = self._named("eval"), self.kind
        return name if reserved(name) in (None, kind) else f"{name} ({kind.rpartition('.')[2]})"

    @cached_property
    def kind(self) -> str:
        """What the evaluation is, by its class: the name in `conf/eval`, or a `_target_`; without a class, its name."""
        target = _mapping(self.config.get("eval")).get("_target_")
        return kind_of(target) if isinstance(target, str) else self._named("eval")

    @property
    def task(self) -> str:
        return self._named("task")

    @cached_property
    def protocol(self) -> str:
        """The protocol's name, marked where its fields are not what the name stands for (`protocol_label`)."""
        return protocol_label(self._named("protocol"), _mapping(self.config.get("protocol")))

    @cached_property
    def method(self) -> str:
        """The method's name, with the parts that are not those of the name (`compresskv.methods`)."""
        return label_of(self.config.get("method"), self._named("method"))

    @property
    def budget(self) -> Budget | None:
        """Tokens per layer and KV head, or a share; None for the full cache, and where nobody says."""
        found = self._named("budget")
        return None if found is None else budget_from(found)

    @property
    def when(self) -> str:
        """After what eviction happened: the prompt, or the context before the question, and perhaps while decoding."""
        when = str(_mapping(self.config.get("eviction")).get("when", "prompt"))
        return when.removesuffix("+decode") if self.budget is None else when

    def _named(self, field: str) -> Any:
        """A field of the summary; where it has none, of the path."""
        summary = self.file_summary[0] or {}
        return summary[field] if field in summary else self.place[field]

    @property
    def scored(self) -> bool:
        """Whether this is a setting's result; what calibration keeps, for one, has lines without a score."""
        return has_scores(self)

    @cached_property
    def problems(self) -> list[str]:
        """All that is wrong with the files, a phrase each that names file and line; empty if nothing is."""
        return problems_of(self)

    @property
    def problem(self) -> str:
        """The first of `problems`; "" if there is none."""
        return next(iter(self.problems), "")

    @property
    def state(self) -> str:
        """In a phrase: running, a problem, samples that the summary does not cover yet, or complete."""
        if self.running:
            return "running"
        if self.problems:
            more = len(self.problems) - 1
            return self.problem + (f" (and {more} more)" if more else "")
        summary, _ = self.file_summary
        if summary is None:
            return "samples without scores"
        if later := len(self.samples) - len(summary["samples"]):
            return f"stale: {later} samples are not in the summary"
        return f"incomplete: {failed_of(self.failures)}" if self.failures else "complete"


def records(results: Path, pattern: str = "") -> list[Record]:
    """The settings under `results` whose path contains `pattern`: every folder that has any of `FILES`, by path."""
    runs = Path(results) / "runs"
    matching = [Record(folder, runs) for folder in sorted(_folders(runs))]
    return [record for record in matching if pattern in record.name]


def _folders(runs: Path) -> Iterator[Path]:
    """Every folder below `runs` that has any of `FILES`; links are followed, but never back to where they lie."""
    for folder, below, names in os.walk(runs, followlinks=True):
        if not set(FILES).isdisjoint(names):
            yield Path(folder)
        for name in list(below):
            path = Path(folder, name)
            if path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve()):
                below.remove(name)


def covered_lines(records: Iterable[Record]) -> list[Line]:
    """The lines that all of `records` report on, one record after the other."""
    return [line for record in records for line in record.covered]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
