"""Check that the files of a setting agree with each other and with their path."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from compresskv.budget import budget_from
from compresskv.errors import UserError
from evals.results.schema import NAMED, Line
from evals.results.summary import disagreements

if TYPE_CHECKING:
    from evals.results.reader import SettingFiles


def problems_of(files: "SettingFiles") -> list[str]:
    """Return descriptions of all problems of the files, with file and line."""
    problems = [f"samples.jsonl:{number}: {fault}" for number, fault in files.line_faults.items()]
    if files.unreadable:
        problems.append(files.unreadable)
    problems += [f"sample {id}: {fault}" for id, line in files.samples.items() if (fault := contradiction(line))]
    summary, reason = files.file_summary
    if summary is not None:
        problems += summary_problems(files, summary)
    elif has_scores(files) and not (files.running and reason == "no summary"):
        only_failures = files.failures and not files.samples and reason == "no summary"
        problems.append(f"no summary: {failed_of(files.failures)}" if only_failures else reason)
    return problems


def has_scores(files: "SettingFiles") -> bool:
    """Return whether these are the result of a setting; the lines of a calibration, for example, have no score."""
    summary, reason = files.file_summary
    no_scores = files.samples and not any("score" in line for line in files.samples.values())
    return summary is not None or reason != "no summary" or not no_scores


def summary_problems(files: "SettingFiles", summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of each problem of a summary."""
    ids = summary["samples"]
    if missing := sum(id not in files.samples for id in ids):
        yield f"the summary covers {missing} samples that are not there"
    elif len(set(ids)) < len(ids):
        yield "the summary covers a sample twice"
    elif not all(_number(files.samples[id].get("score")) for id in ids):
        yield "the summary covers samples without a score"
    elif ids:
        yield from disagreements(summary, [files.samples[id] for id in ids])
    yield from misplaced(files, summary)


def misplaced(files: "SettingFiles", summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of each name of the setting on which summary, path and configuration disagree."""
    if files.path.is_relative_to(files.runs) and summary.get("folder", files.name) != files.name:
        yield f"the summary is that of {summary['folder']}, not of this folder"
    elif len(Path(files.name).parts) == len(NAMED):
        for field in NAMED:
            if field in summary and summary[field] != files.place[field]:
                yield f"the summary has {field} {summary[field]}, but its path has {files.place[field]}"
    config = summary.get("config")
    if not isinstance(config, dict):
        return
    for field in ("eval", "protocol"):
        name = _name_of(config.get(field))
        if name is not None and name != summary.get(field, name):
            yield f"the summary has {field} {summary[field]}, but its configuration has {name}"
    budget = config.get("budget")
    if summary.get("budget") is not None and budget is not None and not _same_budget(budget, summary["budget"]):
        yield f"the summary has budget {summary['budget']}, but its configuration has {budget}"
    name, method = _name_of(config.get("method")), str(summary.get("method"))
    if name is not None and method != name and not method.startswith(f"{name}-"):
        yield f"the summary has method {method}, but its configuration has {name}"
    if "schema_version" in summary and files.file_config != config:
        yield "config.yaml is not the configuration that the summary was made with"


def _same_budget(one: Any, other: Any) -> bool:
    """Return whether two budgets are equal, such as 25% and 25.0%."""
    try:
        return budget_from(one) == budget_from(other)
    except UserError:
        return False


def contradiction(line: Line) -> str:
    """Describe the disagreement between `kl` and `kl_per_token` of a line; "" if they agree."""
    per_token: Any = line.get("kl_per_token")
    kl: Any = line.get("kl")
    if not per_token:
        return ""
    if not isinstance(per_token, list) or not all(map(_number, [kl, *per_token])):
        return "kl or kl_per_token is not made of numbers"
    mean = fmean(per_token)
    agree = abs(mean - float(kl or 0)) < 6e-5  # the values are rounded to 4 decimals, `kl` to 6
    return "" if agree else f"kl is {kl}, the mean of kl_per_token {mean:.4f}"


def failed_of(failures: Mapping[str, Line]) -> str:
    """Return how many samples failed, and why the first one did."""
    number = "1 sample" if len(failures) == 1 else f"{len(failures)} samples"
    return f"{number} failed ({next(iter(failures.values()))['error']})"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name_of(node: Any) -> str | None:
    name = node.get("name") if isinstance(node, dict) else node
    return name if isinstance(name, str) else None
