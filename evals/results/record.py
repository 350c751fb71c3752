"""Read a setting's folder, as written by any version, for reports, loggers and notebooks."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compresskv.budget import Budget, budget_from
from compresskv.methods import label_of
from compresskv.protocol import protocol_label
from compresskv.schedule import once
from evals.kinds import kind_of, reserved
from evals.results.reader import SettingFiles
from evals.results.schema import NAMED, Line
from evals.results.verify import failed_of, has_scores, problems_of

FILES = ("samples.jsonl", "summary.json", "config.yaml")
"""File names that mark a folder as that of a setting."""


@dataclass(frozen=True)
class Record(SettingFiles):
    """The files of a setting, with its names and its problems."""

    @property
    def group(self) -> tuple[str, ...]:
        """Model, evaluation, task and protocol from the path. The settings of a group ran on the same prompts."""
        return self.path.parts[-len(NAMED) : -2]

    @property
    def title(self) -> str:
        """The folder's path, followed in brackets by the names of the setting that differ from those in the path."""
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
        """The evaluation's name, followed by its class if the name is that of a different built-in evaluation."""
        name, kind = self._named("eval"), self.kind
        return name if reserved(name) in (None, kind) else f"{name} ({kind.rpartition('.')[2]})"

    @cached_property
    def kind(self) -> str:
        """The name in `conf/eval` of the evaluation's class, else its `_target_`; without a class, its name."""
        target = _mapping(self.config.get("eval")).get("_target_")
        return kind_of(target) if isinstance(target, str) else self._named("eval")

    @property
    def task(self) -> str:
        return self._named("task")

    @cached_property
    def protocol(self) -> str:
        """The protocol's name, marked if its fields differ from the protocol of that name (`protocol_label`)."""
        return protocol_label(self._named("protocol"), _mapping(self.config.get("protocol")))

    @cached_property
    def method(self) -> str:
        """The method's name, followed by the parts that differ from those of that method (`compresskv.methods`)."""
        return label_of(self.config.get("method"), self._named("method"))

    @property
    def budget(self) -> Budget | None:
        """Tokens per layer and KV head, or a share; None for the full cache, or if it is unknown."""
        found = self._named("budget")
        return None if found is None else budget_from(found)

    @property
    def when(self) -> str:
        """The value of `eviction.when`, such as `prompt` or `context+decode`; `prompt` if it is not set.

        The full cache never evicts while decoding.
        """
        when = str(_mapping(self.config.get("eviction")).get("when", "prompt"))
        return once(when) if self.budget is None else when

    def _named(self, field: str) -> Any:
        """Return a field of the summary, or of the path if the summary does not have it."""
        summary = self.file_summary[0] or {}
        return summary[field] if field in summary else self.place[field]

    @property
    def scored(self) -> bool:
        """Whether this is the result of a setting; the lines of a calibration, for example, have no score."""
        return has_scores(self)

    @cached_property
    def problems(self) -> list[str]:
        """Descriptions of all problems of the files, with file and line."""
        return problems_of(self)

    @property
    def problem(self) -> str:
        """The first of `problems`; "" if there is none."""
        return next(iter(self.problems), "")

    @property
    def state(self) -> str:
        """The state of the folder: running, a problem, samples that the summary does not cover yet, or complete."""
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
    """Return the settings under `results` whose path contains `pattern`, sorted by path.

    Every folder that has any of `FILES` is a setting.
    """
    runs = Path(results) / "runs"
    matching = [Record(folder, runs) for folder in sorted(_folders(runs))]
    return [record for record in matching if pattern in record.name]


def _folders(runs: Path) -> Iterator[Path]:
    """Yield every folder below `runs` that has any of `FILES`. Follow links unless they lead to a parent folder."""
    for folder, below, names in os.walk(runs, followlinks=True):
        if not set(FILES).isdisjoint(names):
            yield Path(folder)
        for name in list(below):
            path = Path(folder, name)
            if path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve()):
                below.remove(name)


def covered_lines(records: Iterable[Record]) -> list[Line]:
    """Return the `covered` lines of all `records`, one record after the other."""
    return [line for record in records for line in record.covered]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
