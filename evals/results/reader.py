"""The files of a setting's folder as they are read, whatever version wrote them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evals.results import lock
from evals.results.lines import Lines, decode
from evals.results.schema import NAMED, Config, Line, Summary, checksum, loads, misfit
from evals.results.summary import measured

F = TypeVar("F", bound="SettingFiles")


@dataclass(frozen=True)
class SettingFiles:
    """The files of one setting's folder under `runs`, each read once, at the first question.

    `ids`: the samples to report on; None for those that the summary covers. `kept`: what is known of the files instead.
    """

    path: Path
    runs: Path
    ids: tuple[str, ...] | None = None
    kept: "Kept | None" = field(default=None, repr=False, compare=False)

    def only(self: F, ids: Sequence[str]) -> F:
        """The same setting, for these samples: its `summary` is computed from their lines."""
        return replace(self, ids=tuple(ids))

    def reduced(self: F, lines: Sequence[Line], failures: Sequence[Line], summary: Mapping[str, Any]) -> F:
        """The same setting as if its files had these lines and this summary: what a reader of many settings keeps."""
        by_id, failed = ({line["id"]: line for line in each} for each in (lines, failures))
        return replace(self, ids=None, kept=Kept(Lines(by_id, failed, {}, 0, 0, {}, 0), dict(summary)))

    def unread(self: F) -> F:
        """The same setting, without what has been read of it."""
        return replace(self)

    @property
    def name(self) -> str:
        """The folder's path below `runs`."""
        path = self.path.relative_to(self.runs) if self.path.is_relative_to(self.runs) else self.path
        return str(path).encode(errors="surrogateescape").decode(errors="replace")

    @cached_property
    def place(self) -> dict[str, Any]:
        """What the path says: <model>/<eval>/<task>/<protocol>/<method>/<budget>-<hash8>."""
        parts = Path(self.name).parts
        if len(parts) != len(NAMED):
            return {**dict.fromkeys(NAMED, ""), **dict(zip(("model", "eval"), parts, strict=False)), "budget": None}
        budget = parts[-1].rpartition("-")[0]
        share = budget if budget.endswith("%") else None
        return {**dict(zip(NAMED, parts, strict=True)), "budget": int(budget) if budget.isdecimal() else share}

    @cached_property
    def _lines(self) -> tuple[Lines, str]:
        """The lines, and why they cannot be read."""
        if self.kept:
            return self.kept.lines, ""
        try:
            return decode((self.path / "samples.jsonl").read_bytes(), self._owner), ""
        except FileNotFoundError:
            return decode(b""), "samples.jsonl is missing"
        except OSError as error:
            return decode(b""), f"samples.jsonl cannot be read ({error.strerror})"

    @property
    def _owner(self) -> dict[str, str]:
        """Whose the lines must be: those of this folder, and of the weights that the summary names."""
        summary, _ = self.file_summary
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

    @property
    def unreadable(self) -> str:
        """Why samples.jsonl cannot be read; "" if it can."""
        return self._lines[1]

    @cached_property
    def file_summary(self) -> tuple[dict[str, Any] | None, str]:
        """The file's summary, and why there is none."""
        if self.kept:
            return self.kept.summary, ""
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
        summary, _ = self.file_summary
        if self.ids is None or not self.covered:
            return summary
        if self.ids == tuple(summary["samples"] if summary else ()) and not self.failures:
            return without_failed(summary)
        content = {**self.place, **without_failed(summary), **measured(self.covered)}
        return {**content, "failed": len(self.failures)} if self.failures else content

    @cached_property
    def covered(self) -> list[Line]:
        """The lines that this reports on, in the task's order; all where there is no summary."""
        summary, _ = self.file_summary
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
        summary, _ = self.file_summary
        config = summary.get("config") if summary else None
        config = config if isinstance(config, dict) else self.file_config or {}
        # Older versions have names alone where there are mappings now.
        names = [name for name in NAMED if name != "budget"]
        return {key: {"name": node} if key in names and isinstance(node, str) else node for key, node in config.items()}

    @cached_property
    def weights(self) -> str:
        """The fingerprint of the model; "" where nobody says."""
        return str((self.file_summary[0] or {}).get("model_fingerprint") or "")

    @cached_property
    def prompts(self) -> str:
        """16 digits of what the summary says that all prompts are made of; "" where it says nothing."""
        prompt = (self.file_summary[0] or {}).get("prompt")
        return checksum(prompt) if isinstance(prompt, dict) else ""

    @cached_property
    def file_config(self) -> dict[str, Any] | None:
        """config.yaml; None where it is absent or not a mapping."""
        if self.kept:
            return None
        try:
            config = yaml.load((self.path / "config.yaml").read_bytes(), Loader=yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None
        return config if isinstance(config, dict) else None

    @property
    def running(self) -> bool:
        """Whether a process writes to the folder."""
        return lock.held(self.path)


@dataclass(frozen=True)
class Kept:
    """The lines and the summary of a setting whose files are not read again."""

    lines: Lines
    summary: dict[str, Any]


def without_failed(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a summary but the number of failed samples, which other samples have another of."""
    return {field: value for field, value in (summary or {}).items() if field != "failed"}
