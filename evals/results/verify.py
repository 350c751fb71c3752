"""Check that the files of a setting agree with each other and with their path (`Record.problems`)."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from compresskv.budget import budget_from
from compresskv.errors import UserError
from evals.results.schema import NAMED, Line, is_number
from evals.results.summary import disagreements


def summary_problems(summary: Mapping[str, Any], samples: Mapping[str, Line]) -> Iterator[str]:
    """Yield a description of each problem of a summary with the lines that it covers."""
    ids = summary["samples"]
    if missing := sum(id not in samples for id in ids):
        yield f"the summary covers {missing} samples that are not there"
    elif len(set(ids)) < len(ids):
        yield "the summary covers a sample twice"
    elif not all(is_number(samples[id].get("score")) for id in ids):
        yield "the summary covers samples without a score"
    elif ids:
        yield from disagreements(summary, [samples[id] for id in ids])


def misplaced(
    summary: Mapping[str, Any], folder: str | None, place: Mapping[str, Any] | None, file_config: Any
) -> Iterator[str]:
    """Yield a description of each name of the setting that differs between the summary, its path and its configuration.

    `folder`: the path below runs; None if the folder is elsewhere. `place`: the names in this path; None if it does not
    name a setting.
    """
    if folder is not None and summary.get("folder", folder) != folder:
        yield f"the summary belongs to {summary['folder']}, not to this folder"
    elif place is not None:
        for field in NAMED:
            if field in summary and summary[field] != place[field]:
                yield f"the summary has {field} {summary[field]}, but its path has {place[field]}"
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
    if "schema_version" in summary and file_config != config:
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
    if not isinstance(per_token, list) or not all(map(is_number, [kl, *per_token])):
        return "kl or kl_per_token is not made of numbers"
    mean = fmean(per_token)
    agree = abs(mean - float(kl or 0)) < 6e-5  # the values are rounded to 4 decimals, `kl` to 6
    return "" if agree else f"kl is {kl}, the mean of kl_per_token {mean:.4f}"


def failed_of(failures: Mapping[str, Line]) -> str:
    """Return how many samples failed, and why the first one did."""
    number = "1 sample" if len(failures) == 1 else f"{len(failures)} samples"
    return f"{number} failed ({next(iter(failures.values()))['error']})"


def _name_of(node: Any) -> str | None:
    name = node.get("name") if isinstance(node, dict) else node
    return name if isinstance(name, str) else None
