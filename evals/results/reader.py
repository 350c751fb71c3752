"""Read the files of a setting's folder, as written by any version."""

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
    """The files of one setting's folder under `runs`. Each file is read once, at first access.

    `ids` are the samples to report on; None means those that the summary covers. If `kept` is given, its lines and
    summary are used instead of the files.
    """

    path: Path
    runs: Path
    ids: tuple[str, ...] | None = None
    kept: "Kept | None" = field(default=None, repr=False, compare=False)

    def only(self: F, ids: Sequence[str]) -> F:
        """Return the same setting restricted to these samples; its `summary` is computed from their lines."""
        return replace(self, ids=tuple(ids))

    def reduced(self: F, lines: Sequence[Line], failures: Sequence[Line], summary: Mapping[str, Any]) -> F:
        """Return the same setting with these lines and this summary instead of its files, to save memory."""
        by_id, failed = ({line["id"]: line for line in each} for each in (lines, failures))
        return replace(self, ids=None, kept=Kept(Lines(by_id, failed, {}, 0, 0, {}, 0), dict(summary)))

    def unread(self: F) -> F:
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
    def _lines(self) -> tuple[Lines, str]:
        """The lines, and the reason why they cannot be read; "" if they can."""
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
        """The expected `of` of the lines: this folder, and the fingerprint of the weights in the summary."""
        summary, _ = self.file_summary
        named = (summary or {}).get("model_fingerprint")
        weights = {"model_fingerprint": named} if isinstance(named, str) else {}
        return {"folder": self.name, **weights} if self.path.is_relative_to(self.runs) else weights

    @property
    def samples(self) -> dict[str, Line]:
        """All complete, valid lines by id; another process may be writing the next line."""
        return self._lines[0].by_id

    @property
    def line_faults(self) -> Mapping[int, str]:
        """Descriptions of invalid lines of samples.jsonl, by line number. These lines are not in `samples`.

        All lines of one other setting share one description.
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
        """The lines of failed samples without a result, among the samples to report on."""
        failures = self._lines[0].failures
        return failures if self.ids is None else {id: failures[id] for id in self.ids if id in failures}

    @property
    def unchecked(self) -> int:
        """Number of lines without a checksum, which older versions wrote."""
        return self._lines[0].unchecked

    @property
    def unnamed(self) -> int:
        """Number of lines that do not name their setting, which older versions wrote."""
        return self._lines[0].unnamed

    @property
    def unreadable(self) -> str:
        """The reason why samples.jsonl cannot be read; "" if it can."""
        return self._lines[1]

    @cached_property
    def file_summary(self) -> tuple[dict[str, Any] | None, str]:
        """The content of summary.json, or None and the reason why there is no valid summary."""
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
        """The summary of `covered`; None if the file is missing or invalid, which `problem` explains.

        For a setting restricted with `only`, the means are computed from the lines. The other fields are those of the
        file, and the names in the path if there is no file.
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
        """The lines to report on, in the task's order; all lines if there is no summary."""
        summary, _ = self.file_summary
        samples = self.samples
        ids = self.ids if self.ids is not None else summary["samples"] if summary else samples
        return [samples[id] for id in ids if id in samples]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration in the summary, else that in config.yaml; empty if there is no valid configuration."""
        return {} if self.config_fault else self._config

    @property
    def config_fault(self) -> str:
        """Description of what is invalid in the configuration, in which case `config` is empty; "" if it is valid."""
        config = self._config
        if not config and self.file_config is None and (self.path / "config.yaml").exists():
            return "config.yaml is no mapping"
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
        """The fingerprint of the model; "" if the summary has none."""
        return str((self.file_summary[0] or {}).get("model_fingerprint") or "")

    @cached_property
    def prompts(self) -> str:
        """16 digits of the hash of `prompt` in the summary, which describes all prompts; "" if it has none."""
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


@dataclass(frozen=True)
class Kept:
    """The lines and the summary that replace the files of a setting."""

    lines: Lines
    summary: dict[str, Any]


def without_failed(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a summary without `failed`, which would be wrong for a different set of samples."""
    return {field: value for field, value in (summary or {}).items() if field != "failed"}
