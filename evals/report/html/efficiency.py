"""Efficiency of the page: latency and memory as the measurements left them, the newest of each model first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evals.report import concurrency
from evals.report.efficiency import as_papers_write
from evals.report.html.chart import Chart, Line, Point
from evals.results.measurement import efficiency_runs
from evals.results.provenance import shown_environment

PANELS = (
    ("total_s", "Latency, end to end", "seconds", 1.0),
    ("decode_ms", "Decoding", "milliseconds per token", 1.0),
    ("cache_bytes", "KV cache", "MB", 1e-6),
    ("peak_bytes", "Peak memory", "MB", 1e-6),
)

COLUMNS = (
    ("first_token_s", "first token (s)", 1.0),
    ("decode_ms", "decode (ms/token)", 1.0),
    ("total_s", "total (s)", 1.0),
    ("cache_bytes", "cache (MB)", 1e-6),
    ("peak_bytes", "peak (MB)", 1e-6),
)


@dataclass(frozen=True)
class Measured:
    """One measurement of a model: `rows` as texts, in the order of `columns`; `pools` in that of `pool_columns`."""

    model: str
    when: str
    about: str
    environment: Mapping[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    charts: Sequence[Chart]
    launch_bound: bool
    pools: Sequence[Sequence[str]]
    pool_columns: Sequence[str] = concurrency.HEADER


def measurements(results: Path) -> tuple[list[Measured], list[str]]:
    """All of them, and a phrase for each file, and each row, that is left out."""
    runs, problems = efficiency_runs(results)
    shown = [_measured(content, path.parent.name) for path, content in reversed(runs)]
    return sorted(shown, key=lambda measured: measured.model), problems


def _measured(content: Mapping[str, Any], when: str) -> Measured:
    rows, pools = (list(map(as_papers_write, part)) for part in (content["rows"], content.get("concurrency", [])))
    about = f"{content['new_tokens']} new tokens, {content['rounds']} rounds, {content['dtype']}, {content['backend']}"
    return Measured(
        content["model"],
        _date(when),
        about,
        shown_environment(content.get("environment")),
        ["setting", "prompt tokens", *(title for _, title, _ in COLUMNS)],
        [[row["setting"], str(row["length"]), *_texts(row)] for row in rows],
        [chart for panel in PANELS if (chart := _chart(rows, *panel))] + _pool_charts(pools),
        any(row.get("launch_bound") for row in (*rows, *pools)),
        list(map(concurrency.texts, pools)),
    )


def _pool_charts(pools: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Tokens per second over the pool, one for each prompt length."""
    charts = []
    for length in sorted({row["length"] for row in pools}):
        lines = []
        for style, (setting, points) in enumerate(concurrency.lines(pools, length).items()):
            lines.append(Line(setting, [Point(round(pool, 1) or pool, speed) for pool, speed in points], style))
        title = f"Sequences together, prompts of {length} tokens"
        charts.append(Chart(title, "KV memory pool (MB)", "tokens per second", lines, log=True))
    return charts


def _date(folder: str) -> str:
    """The date and time in the name of a measurement's folder; the name itself where it is none."""
    try:
        return f"{datetime.strptime(folder[:15], '%Y%m%d-%H%M%S'):%Y-%m-%d %H:%M}"
    except ValueError:
        return folder


def _texts(row: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, _, scale in COLUMNS:
        value, ratio = row.get(name), row.get(f"{name}_ratio")
        bound = "*" if name == "decode_ms" and row.get("launch_bound") else ""
        shown = "–" if value is None else f"{value * scale:.2f}{bound}"
        texts.append(f"{shown} ×{ratio:.2f}" if ratio is not None else shown)
    return texts


def _chart(rows: Sequence[Mapping[str, Any]], name: str, title: str, unit: str, scale: float) -> Chart | None:
    points: dict[str, list[Point]] = {}
    for row in rows:
        if row.get(name) is not None:
            points.setdefault(row["setting"], []).append(Point(row["length"], row[name] * scale))
    if not points:
        return None
    lines = [
        Line(setting, sorted(of_line, key=lambda point: point.x), style)
        for style, (setting, of_line) in enumerate(points.items())
    ]
    return Chart(title, "prompt length (tokens)", unit, lines, log=True, digits=2)
