"""What a run shows at its end: tables of all settings, and one figure of all heatmaps."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from evals.console import screen
from evals.runner import Finished


def show(finished: Sequence[Finished]) -> list[Path]:
    """Print the tables of every model and evaluation, write one figure for each NIAH table; returns their paths."""
    console = screen()
    paths: list[Path] = []
    groups: dict[tuple[str, str], list[Finished]] = {}
    for item in finished:
        groups.setdefault((item.summary["model"], item.summary["eval"]), []).append(item)
    for (model, evaluation), items in groups.items():
        title = f"{model} · {evaluation}"
        if evaluation == "longbench":
            for shown in _longbench(title, items):
                console.print(shown)
        else:
            console.print(table(title, items))
            paths += _heatmaps(model, items)
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)
    return paths


def names(items: Sequence[Finished]) -> list[str]:
    """A name for each setting: method and budget, and whatever else it takes to tell those of one task apart."""
    protocols = {item.summary["protocol"] for item in items}
    found = [item.job.setting + (f" ({item.summary['protocol']})" if len(protocols) > 1 else "") for item in items]
    keys = [(item.summary["task"], name) for item, name in zip(items, found, strict=True)]
    return [
        name if keys.count(key) == 1 else f"{name} [{item.folder.name.split('-')[-1]}]"
        for key, name, item in zip(keys, found, items, strict=True)
    ]


def table(title: str, items: Sequence[Finished]) -> Table:
    """One row a setting: score with its interval, the parts of the score, what was really kept."""
    parts = list(dict.fromkeys(part for item in items for part in item.breakdown))
    shown = Table(title=title)
    shown.add_column("setting", no_wrap=True)
    for column in ("score", "95 % interval", *parts, "n", "kept/layer/head", "cache MB"):
        shown.add_column(column, justify="right")
    for name, item in zip(names(items), items, strict=True):
        summary = item.summary
        low, high = summary["interval"]
        shown.add_row(
            name,
            f"{summary['score']:.1f}",
            f"{low:.1f} – {high:.1f}",
            *(f"{item.breakdown[part]:.1f}" if part in item.breakdown else "" for part in parts),
            str(summary["n"]),
            f"{summary['realised_budget']:.1f}",
            f"{summary['cache_bytes'] / 1e6:.2f}",
        )
    return shown


def _longbench(title: str, items: Sequence[Finished]) -> list[Table]:
    from evals.longbench.report import tables

    settings: dict[str, dict] = {}
    for name, item in zip(names(items), items, strict=True):
        settings.setdefault(name, {})[item.summary["task"]] = item.lines
    return tables(title, settings)


def _heatmaps(model: str, items: Sequence[Finished]) -> list[Path]:
    from evals.niah.heatmap import Panel, draw

    folders = sorted(str(item.folder) for item in items)
    digest = hashlib.sha256("\n".join(folders).encode()).hexdigest()[:8]
    stem = items[0].job.results / "figures" / f"niah-{model}-{digest}"
    rows: dict[tuple[str, str], list[Panel]] = {}
    for name, item in zip(names(items), items, strict=True):
        rows.setdefault((item.job.method.name, item.summary["protocol"]), []).append((name, item.lines))
    panels = list(rows.values())
    if max(map(len, panels)) == 1:  # a single budget: methods side by side
        flat = [row[0] for row in panels]
        panels = [flat[i : i + 4] for i in range(0, len(flat), 4)]
    return draw(panels, f"Needle in a haystack, {model}", stem)
