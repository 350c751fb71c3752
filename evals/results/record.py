"""Read a setting's folder, as written by any version, for reports, loggers and notebooks."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from compresskv.budget import Budget, budget_from
from compresskv.methods import label_of
from compresskv.protocol import protocol_label
from compresskv.schedule import once
from evals.files import loads
from evals.kinds import kind_of, reserved
from evals.results import lock
from evals.results.lines import Lines, decode
from evals.results.schema import NAMED, Config, Line, Summary, checksum, misfit
from evals.results.summary import measured
from evals.results.verify import contradiction, failed_of, misplaced, summary_problems

FILES = ("samples.jsonl", "summary.json", "config.yaml")
"""A folder with one of these files is the folder of a setting."""


@dataclass(frozen=True)
class Record:
    """The files of one setting's folder under `runs`, its names and its problems. Each file is read once, when needed.

    `ids` are the samples to report on; None means the samples that the summary covers. If `kept` is given, its lines
    and summary are used instead of the files.
    """

    path: Path
    runs: Path
    ids: tuple[str, ...] | None = None
    kept: tuple[Lines, dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    def only(self, ids: Sequence[str]) -> Self:
        """Return the same setting restricted to these samples; its `summary` is computed from their lines."""
        return replace(self, ids=tuple(ids))

    def reduced(self, lines: Sequence[Line], failures: Sequence[Line], summary: Mapping[str, Any]) -> Self:
        """Return the same setting with these lines and this summary instead of its files, to save memory."""
        by_id, failed = ({line["id"]: line for line in each} for each in (lines, failures))
        return replace(self, ids=None, kept=(Lines(by_id=by_id, failures=failed), dict(summary)))

    def unread(self) -> Self:
        """Return the same setting with nothing read yet."""
        return replace(self)

    @property
    def name(self) -> str:
        """The folder's path below `runs`."""
        path = self.path.relative_to(self.runs) if self.path.is_relative_to(self.runs) else self.path
        return str(path).encode(errors="surrogateescape").decode(errors="replace")

    @cached_property
    def place(self) -> dict[str, Any]:
        """The names in the path <model>/<eval>/<task>/<protocol>/<method>/<budget>-<hash8>, by field of `NAMED`."""
        parts = Path(self.name).parts
        if len(parts) != len(NAMED):
            return {**dict.fromkeys(NAMED, ""), **dict(zip(("model", "eval"), parts, strict=False)), "budget": None}
        budget = parts[-1].rpartition("-")[0]
        share = budget if budget.endswith("%") else None
        return {**dict(zip(NAMED, parts, strict=True)), "budget": int(budget) if budget.isdecimal() else share}

    @cached_property
    def lines(self) -> Lines:
        """The decoded lines of samples.jsonl; another process may be writing the next one."""
        if self.kept:
            return self.kept[0]
        try:
            return decode((self.path / "samples.jsonl").read_bytes(), self._owner)
        except FileNotFoundError:
            return Lines(unreadable="samples.jsonl is missing")
        except OSError as error:
            return Lines(unreadable=f"samples.jsonl cannot be read ({error.strerror})")

    @property
    def _owner(self) -> dict[str, str]:
        """The expected `of` of the lines: this folder, and the fingerprint of the weights in the summary."""
        summary, _ = self.file_summary
        named = (summary or {}).get("model_fingerprint")
        weights = {"model_fingerprint": named} if isinstance(named, str) else {}
        return {"folder": self.name, **weights} if self.path.is_relative_to(self.runs) else weights

    @property
    def samples(self) -> dict[str, Line]:
        """All complete, valid lines by id."""
        return self.lines.by_id

    @property
    def line_faults(self) -> Mapping[int, str]:
        """Descriptions of invalid lines of samples.jsonl, by line number. These lines are not in `samples`.

        All lines of one other setting share one description.
        """
        faults = dict(self.lines.faults)
        for whose, (number, *others) in self.lines.foreign.items():
            more = f", and {len(others)} more such lines" if others else ""
            faults[number] = f"{whose}, not of this folder{more}"
        return dict(sorted(faults.items()))

    @property
    def failures(self) -> dict[str, Line]:
        """The lines of failed samples without a result, among the samples to report on."""
        failures = self.lines.failures
        return failures if self.ids is None else {id: failures[id] for id in self.ids if id in failures}

    @cached_property
    def file_summary(self) -> tuple[dict[str, Any] | None, str]:
        """The content of summary.json and "", or None and the reason why the summary is missing or invalid."""
        if self.kept:
            return self.kept[1], ""
        try:
            summary = loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, "no summary"
        except OSError as error:
            return None, f"summary.json cannot be read ({error.strerror})"
        except (ValueError, RecursionError) as error:
            return None, f"summary.json is not JSON ({error})"
        if fault := misfit(Summary, summary):
            return None, f"summary.json is not a summary ({fault})"
        return summary, ""

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The summary of `covered`; None if the file is missing or invalid, which `problem` explains.

        For a setting restricted with `only`, the means are computed from the lines. The other fields come from the
        file, or from the names in the path if there is no file.
        """
        summary, _ = self.file_summary
        if self.ids is None or not self.covered:
            return summary
        failed = {"failed": len(self.failures)} if self.failures else {}
        without_failed = {name: value for name, value in (summary or {}).items() if name != "failed"}
        if self.ids == tuple(summary["samples"] if summary else ()) and not failed:
            return without_failed
        return {**self.place, **without_failed, **measured(self.covered), **failed}

    @cached_property
    def covered(self) -> list[Line]:
        """The lines to report on, in the task's order; all lines if there is no summary."""
        summary, _ = self.file_summary
        samples = self.samples
        ids = self.ids if self.ids is not None else summary["samples"] if summary else samples
        return [samples[id] for id in ids if id in samples]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration in the summary, else the configuration in config.yaml; empty if neither is valid."""
        return {} if self.config_fault else self._config

    @property
    def config_fault(self) -> str:
        """Description of what is invalid in the configuration (`config` is then empty); "" if it is valid."""
        config = self._config
        if not config and self.file_config is None and (self.path / "config.yaml").exists():
            return "config.yaml is not a mapping"
        return misfit(Config, config)

    @property
    def _config(self) -> dict[str, Any]:
        summary, _ = self.file_summary
        config = summary.get("config") if summary else None
        config = config if isinstance(config, dict) else self.file_config or {}
        # Older versions store a name instead of a mapping.
        names = [name for name in NAMED if name != "budget"]
        return {key: {"name": node} if key in names and isinstance(node, str) else node for key, node in config.items()}

    @cached_property
    def weights(self) -> str:
        """The fingerprint of the model; "" if the summary has no fingerprint."""
        return str((self.file_summary[0] or {}).get("model_fingerprint") or "")

    @cached_property
    def prompts(self) -> str:
        """16 digits of the hash of `prompt` in the summary, which describes all prompts; "" if the summary has no
        `prompt`."""
        prompt = (self.file_summary[0] or {}).get("prompt")
        return checksum(prompt) if isinstance(prompt, dict) else ""

    @cached_property
    def file_config(self) -> dict[str, Any] | None:
        """The content of config.yaml; None if it is missing or not a mapping."""
        if self.kept:
            return None
        try:
            config = yaml.load((self.path / "config.yaml").read_bytes(), Loader=yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None
        return config if isinstance(config, dict) else None

    @property
    def running(self) -> bool:
        """Whether a process is writing to the folder."""
        return lock.held(self.path)

    @property
    def group(self) -> tuple[str, ...]:
        """Model, evaluation, task and protocol from the path. The settings of a group ran on the same prompts."""
        return self.path.parts[-len(NAMED) : -2]

    @property
    def title(self) -> str:
        """The folder's path, followed in brackets by the names of the setting that the path does not have."""
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
        """The evaluation's name, followed by its class if a different built-in evaluation has this name."""
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
        """The method's name, followed by the parts that differ from the parts of this method (`compresskv.methods`)."""
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
        """Return a field of the summary, or of the path if the summary does not have this field."""
        summary = self.file_summary[0] or {}
        return summary[field] if field in summary else self.place[field]

    @property
    def scored(self) -> bool:
        """Whether this is the result of a setting; the lines of a calibration, for example, have no score."""
        summary, reason = self.file_summary
        no_scores = self.samples and not any("score" in line for line in self.samples.values())
        return summary is not None or reason != "no summary" or not no_scores

    @cached_property
    def problems(self) -> list[str]:
        """Descriptions of all problems of the files, with file and line."""
        problems = [f"samples.jsonl:{number}: {fault}" for number, fault in self.line_faults.items()]
        if self.lines.unreadable:
            problems.append(self.lines.unreadable)
        problems += [f"sample {id}: {fault}" for id, line in self.samples.items() if (fault := contradiction(line))]
        summary, reason = self.file_summary
        if summary is not None:
            folder = self.name if self.path.is_relative_to(self.runs) else None
            place = self.place if len(Path(self.name).parts) == len(NAMED) else None
            problems += summary_problems(summary, self.samples)
            problems += misplaced(summary, folder, place, self.file_config)
        elif self.scored and not (self.running and reason == "no summary"):
            only_failures = self.failures and not self.samples and reason == "no summary"
            problems.append(f"no summary: {failed_of(self.failures)}" if only_failures else reason)
        return problems

    @property
    def problem(self) -> str:
        """The first of `problems`; "" without problems."""
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
