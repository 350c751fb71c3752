"""What a run shows at its end: one table of all settings, one figure of all heatmaps."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evals.runner import Finished


def show(finished: Sequence[Finished], console: Console | None = None) -> list[Path]:
    """Print one table a model and evaluation, write one figure for each NIAH table; returns the figures' paths."""
    console = console or Console()
    paths: list[Path] = []
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for item in finished:
        key = (item.summary["model"], item.summary["eval"])
        groups.setdefault(key, []).append(item)
    for (model, evaluation), items in groups.items():
        console.print(table(f"{model} · {evaluation}", items))
        if evaluation == "niah":
            paths += _heatmaps(model, items)
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)
    return paths


def names(items: Sequence[Finished]) -> list[str]:
    """A distinct name for each setting: method and budget, and whatever else it takes to tell them apart."""
    protocols = {item.summary["protocol"] for item in items}
    found = [item.job.setting + (f" ({item.summary['protocol']})" if len(protocols) > 1 else "") for item in items]
    return [
        name if found.count(name) == 1 else f"{name} [{item.folder.name.split('-')[-1]}]"
        for name, item in zip(found, items, strict=True)
    ]


def table(title: str, items: Sequence[Finished]) -> Table:
    """One row a setting: score with its interval, the parts of the score, what was really kept."""
    parts = list(dict.fromkeys(part for item in items for part in item.breakdown))
    shown = Table(title=title)
    for column in ("setting", "task"):
        shown.add_column(column)
    for column in ("score", "95 % interval", *parts, "n", "kept/layer/head", "cache MB"):
        shown.add_column(column, justify="right")
    for name, item in zip(names(items), items, strict=True):
        summary = item.summary
        low, high = summary["interval"]
        shown.add_row(
            name,
            summary["task"],
            f"{summary['score']:.1f}",
            f"{low:.1f} – {high:.1f}",
            *(f"{item.breakdown[part]:.1f}" if part in item.breakdown else "" for part in parts),
            str(summary["n"]),
            f"{summary['realised_budget']:.1f}",
            f"{summary['cache_bytes'] / 1e6:.2f}",
        )
    return shown


def _heatmaps(model: str, items: Sequence[Finished]) -> list[Path]:
    from evals.niah.heatmap import draw

    folders = sorted(str(item.folder) for item in items)
    digest = hashlib.sha256("\n".join(folders).encode()).hexdigest()[:8]
    stem = items[0].job.results / "figures" / f"niah-{model}-{digest}"
    panels = [(name, item.lines) for name, item in zip(names(items), items, strict=True)]
    return draw(panels, f"Needle in a haystack, {model}", stem)
