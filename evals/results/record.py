"""A setting's folder as its files say it is, whatever version wrote them: what reports, loggers and notebooks read."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from compresskv.methods import label_of
from compresskv.protocol import protocol_label
from evals.kinds import kind_of, reserved
from evals.results import lock
from evals.results.fits import misfit
from evals.results.lines import Lines, checksum, decode, loads
from evals.results.schema import Config, Line, Summary
from evals.results.summary import disagreements, measured

FILES = ("samples.jsonl", "summary.json", "config.yaml")
"""What makes a folder that of a setting."""

NAMED = ("model", "eval", "task", "protocol", "method", "budget")
"""What a setting is named by, in the order of its path."""


@dataclass(frozen=True)
class Record:
    """One setting's folder under `runs`, read once, at the first question.

    `ids`: the samples to report on; None for those that the summary covers.
    """

    path: Path
    runs: Path
    ids: tuple[str, ...] | None = None

    def only(self, ids: Sequence[str]) -> "Record":
        """The same setting, for these samples: its `summary` is computed from their lines."""
        return replace(self, ids=tuple(ids))

    def reduced(self, lines: Sequence[Line], failures: Sequence[Line], summary: Mapping[str, Any]) -> "Record":
        """The same setting as if its files had these lines and this summary: what a reader of many settings keeps."""
        by_id, failed = ({line["id"]: line for line in each} for each in (lines, failures))
        reduced = Record(self.path, self.runs)
        content = Lines(by_id, failed, {}, 0, 0, {}, 0)
        vars(reduced).update(_lines=(content, ""), _file_summary=(dict(summary), ""), file_config=None)
        return reduced

    def unread(self) -> "Record":
        """The same setting, without what has been read of it."""
        return replace(self)

    @property
    def group(self) -> tuple[str, ...]:
        """Model, evaluation, task and protocol, by the path alone: the settings of a group ran on the same prompts."""
        return self.path.parts[-len(NAMED) : -2]

    @property
    def name(self) -> str:
        """The folder's path below `runs`."""
        path = self.path.relative_to(self.runs) if self.path.is_relative_to(self.runs) else self.path
        return str(path).encode(errors="surrogateescape").decode(errors="replace")

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
    def budget(self) -> int | None:
        """Tokens per layer and KV head; None for the full cache, and where nobody says."""
        return self._named("budget")

    def _named(self, field: str) -> Any:
        """A field of the summary; where it has none, of the path."""
        summary = self._file_summary[0] or {}
        return summary[field] if field in summary else self._place[field]

    @cached_property
    def _place(self) -> dict[str, Any]:
        """What the path says: <model>/<eval>/<task>/<protocol>/<method>/<budget>-<hash8>."""
        parts = Path(self.name).parts
        if len(parts) != len(NAMED):
            return {**dict.fromkeys(NAMED, ""), **dict(zip(("model", "eval"), parts, strict=False)), "budget": None}
        budget = parts[-1].rpartition("-")[0]
        return {**dict(zip(NAMED, parts, strict=True)), "budget": int(budget) if budget.isdecimal() else None}

    @cached_property
    def _lines(self) -> tuple[Lines, str]:
        """The lines, and why they cannot be read."""
        try:
            return decode((self.path / "samples.jsonl").read_bytes(), self._owner), ""
        except FileNotFoundError:
            return decode(b""), "samples.jsonl is missing"
        except OSError as error:
            return decode(b""), f"samples.jsonl cannot be read ({error.strerror})"

    @property
    def _owner(self) -> dict[str, str]:
        """Whose the lines must be: those of this folder, and of the weights that the summary names."""
        summary, _ = self._file_summary
        named = (summary or {}).get("model_fingerprint")
        weights = {"model_fingerprint": named} if isinstance(named, str) else {}
        return {"folder": self.name, **weights} if self.path.is_relative_to(self.runs) else weights

    @property
    def samples(self) -> dict[str, Line]:
        """All complete, sound lines by id; another process may be writing the next one."""
        return self._lines[0].by_id

    @property
    def line_faults(self) -> Mapping[int, str]:
        """What is wrong with lines of samples.jsonl, a phrase by number; these are not among `samples`.

        Lines of another setting have one phrase together.
        """
        numbers: dict[str, list[int]] = {}
        for number, whose in self._lines[0].foreign.items():
            numbers.setdefault(whose, []).append(number)
        foreign = {}
        for whose, of_one in numbers.items():
            more = f", and {len(of_one) - 1} more like it" if len(of_one) > 1 else ""
            foreign[of_one[0]] = f"{whose}, not of this folder{more}"
        return dict(sorted((self._lines[0].faults | foreign).items()))

    @property
    def failures(self) -> dict[str, Line]:
        """The lines of samples that were tried and have no result, of those that this reports on."""
        failures = self._lines[0].failures
        return failures if self.ids is None else {id: failures[id] for id in self.ids if id in failures}

    @property
    def unchecked(self) -> int:
        """How many lines have no checksum, as those of older versions."""
        return self._lines[0].unchecked

    @property
    def unnamed(self) -> int:
        """How many lines do not name their setting, as those of older versions."""
        return self._lines[0].unnamed

    @cached_property
    def _file_summary(self) -> tuple[dict[str, Any] | None, str]:
        """The file's summary, and why there is none."""
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
        """The summary of `covered`; None where there is none, or where the file is not one: `problem` says why.

        That of some samples `only` is the file's with their means; where no file is, with what the path says.
        """
        summary, _ = self._file_summary
        if self.ids is None or not self.covered:
            return summary
        if self.ids == tuple(summary["samples"] if summary else ()) and not self.failures:
            return without_failed(summary)
        content = {**self._place, **without_failed(summary), **measured(self.covered)}
        return {**content, "failed": len(self.failures)} if self.failures else content

    @cached_property
    def covered(self) -> list[Line]:
        """The lines that this reports on, in the task's order; all where there is no summary."""
        summary, _ = self._file_summary
        samples = self.samples
        ids = self.ids if self.ids is not None else summary["samples"] if summary else samples
        return [samples[id] for id in ids if id in samples]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the summary was made with, else that of config.yaml; empty where there is none."""
        return {} if self.config_fault else self._config

    @property
    def config_fault(self) -> str:
        """What of the configuration is not one, in a phrase: then `config` is empty; "" if nothing is."""
        config = self._config
        if not config and self.file_config is None and (self.path / "config.yaml").exists():
            return "config.yaml is no mapping"
        return misfit(Config, config)

    @property
    def _config(self) -> dict[str, Any]:
        summary, _ = self._file_summary
        config = summary.get("config") if summary else None
        config = config if isinstance(config, dict) else self.file_config or {}
        # Older versions have names alone where there are mappings now.
        return {key: {"name": node} if key in NAMED and isinstance(node, str) else node for key, node in config.items()}

    @cached_property
    def weights(self) -> str:
        """The fingerprint of the model; "" where nobody says."""
        return str((self._file_summary[0] or {}).get("model_fingerprint") or "")

    @cached_property
    def prompts(self) -> str:
        """16 digits of what the summary says that all prompts are made of; "" where it says nothing."""
        prompt = (self._file_summary[0] or {}).get("prompt")
        return checksum(prompt) if isinstance(prompt, dict) else ""

    @cached_property
    def file_config(self) -> dict[str, Any] | None:
        """config.yaml; None where it is absent or no mapping."""
        try:
            config = yaml.load((self.path / "config.yaml").read_bytes(), Loader=yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None
        return config if isinstance(config, dict) else None

    @property
    def running(self) -> bool:
        """Whether a process writes to the folder."""
        return lock.held(self.path)

    @property
    def scored(self) -> bool:
        """Whether this is a setting's result; what calibration keeps, for one, has lines without a score."""
        summary, reason = self._file_summary
        no_scores = self.samples and not any("score" in line for line in self.samples.values())
        return summary is not None or reason != "no summary" or not no_scores

    @cached_property
    def problems(self) -> list[str]:
        """All that is wrong with the files, a phrase each that names file and line; empty if nothing is."""
        _, unreadable = self._lines
        problems = [f"samples.jsonl:{number}: {fault}" for number, fault in self.line_faults.items()]
        if unreadable:
            problems.append(unreadable)
        problems += [f"sample {id}: {fault}" for id, line in self.samples.items() if (fault := contradiction(line))]
        summary, reason = self._file_summary
        if summary is not None:
            problems += self._summary_problems(summary)
        elif self.scored and not (self.running and reason == "no summary"):
            only_failures = self.failures and not self.samples and reason == "no summary"
            problems.append(f"no summary: {failed_of(self.failures)}" if only_failures else reason)
        return problems

    def _summary_problems(self, summary: Mapping[str, Any]) -> Iterator[str]:
        ids = summary["samples"]
        if missing := sum(id not in self.samples for id in ids):
            yield f"the summary covers {missing} samples that are not there"
        elif len(set(ids)) < len(ids):
            yield "the summary covers a sample twice"
        elif not all(_number(self.samples[id].get("score")) for id in ids):
            yield "the summary covers samples without a score"
        elif ids:
            yield from disagreements(summary, [self.samples[id] for id in ids])
        yield from self._misplaced(summary)

    def _misplaced(self, summary: Mapping[str, Any]) -> Iterator[str]:
        """Where summary, path and configuration do not agree on what the setting is."""
        if self.path.is_relative_to(self.runs) and summary.get("folder", self.name) != self.name:
            yield f"the summary is that of {summary['folder']}, not of this folder"
        elif len(Path(self.name).parts) == len(NAMED):
            for field in NAMED:
                if field in summary and summary[field] != self._place[field]:
                    yield f"the summary says {field} {summary[field]}, its path {self._place[field]}"
        config = summary.get("config")
        if not isinstance(config, dict):
            return
        for field in ("eval", "protocol"):
            name = _name_of(config.get(field))
            if name is not None and name != summary.get(field, name):
                yield f"the summary says {field} {summary[field]}, its configuration {name}"
        budget = config.get("budget")
        if summary.get("budget") is not None and budget is not None and budget != summary["budget"]:
            yield f"the summary says budget {summary['budget']}, its configuration {budget}"
        name, method = _name_of(config.get("method")), str(summary.get("method"))
        if name is not None and method != name and not method.startswith(f"{name}-"):
            yield f"the summary says method {method}, its configuration {name}"
        if "schema_version" in summary and self.file_config != config:
            yield "config.yaml is not the configuration that the summary was made with"

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
        summary, _ = self._file_summary
        if summary is None:
            return "samples without scores"
        if later := len(self.samples) - len(summary["samples"]):
            return f"stale: {later} samples are not in the summary"
        return f"incomplete: {failed_of(self.failures)}" if self.failures else "complete"


def contradiction(line: Line) -> str:
    """Where fields of a line do not follow from each other, in a phrase; "" if they do."""
    per_token: Any = line.get("kl_per_token")
    kl: Any = line.get("kl")
    if not per_token:
        return ""
    if not isinstance(per_token, list) or not all(map(_number, [kl, *per_token])):
        return "kl or kl_per_token is not made of numbers"
    mean = fmean(per_token)
    agree = abs(mean - float(kl or 0)) < 6e-5  # both are rounded, to 4 and 6 decimals
    return "" if agree else f"kl is {kl}, the mean of kl_per_token {mean:.4f}"


def without_failed(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a summary but the number of failed samples, which other samples have another of."""
    return {field: value for field, value in (summary or {}).items() if field != "failed"}


def failed_of(failures: Mapping[str, Line]) -> str:
    """How many samples failed, and why the first one did, in a phrase."""
    number = "1 sample" if len(failures) == 1 else f"{len(failures)} samples"
    return f"{number} failed ({next(iter(failures.values()))['error']})"


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


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name_of(node: Any) -> str | None:
    name = node.get("name") if isinstance(node, dict) else node
    return name if isinstance(name, str) else None
