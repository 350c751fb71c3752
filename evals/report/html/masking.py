"""Head masking of the page: accuracy by number of masked heads, a line for each ranking."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from evals.head_masking.draws import by_prompt
from evals.report.html.chart import Chart, Line, Point
from evals.report.html.reading import Setting, Tree
from evals.results import schema, statistics


@dataclass(frozen=True)
class Masked:
    """One model under one protocol; a row is ranking, masked heads, score, interval, samples and draws."""

    title: str
    rows: Sequence[Sequence[str]]
    chart: Chart


def masked(tree: Tree) -> list[Masked]:
    """A table and a chart for each model and protocol, and where there are several, each evaluation and weights."""

    def place(setting: Setting) -> tuple[str, ...]:
        record = setting.record
        named = () if record.eval == record.kind else (record.eval,)
        return record.model, *named, record.protocol, record.weights

    settings = sorted((s for s in tree.settings if s.record.kind == "head_masking"), key=place)
    groups = {of: list(group) for of, group in groupby(settings, key=place)}
    several = Counter(of[:-1] for of in groups)
    return [
        _masked(" · ".join([*of[:-1], *([f"weights {of[-1][:8]}"] if several[of[:-1]] > 1 else [])]), group)
        for of, group in groups.items()
    ]


def _masked(title: str, settings: Sequence[Setting]) -> Masked:
    """Draws of the random control are averaged within each prompt."""
    lines_of: dict[tuple[str, int], list[schema.Line]] = {}
    for setting in settings:
        for line in setting.record.covered:
            choice = str(line.get("ranking")), int(line.get("masked") or 0)
            lines_of.setdefault(choice, []).append(line)
    points: dict[str, list[Point]] = {}
    rows = []
    for (ranking, count), of_choice in sorted(lines_of.items(), key=lambda item: item[0]):
        values = list(by_prompt(of_choice).values())
        draws = sum(line["id"] == of_choice[-1]["id"] for line in of_choice)
        low, high = bounds = statistics.interval(values) or (None, None)
        points.setdefault(ranking, []).append(Point(count, fmean(values), low, high))
        shown = "–" if None in bounds else f"{low:.1f} to {high:.1f}"
        rows.append([ranking, str(count), f"{fmean(values):.1f}", shown, str(len(values)), str(draws)])
    none = points.pop("none", [])
    lines = [Line(ranking, none + of_line, style) for style, (ranking, of_line) in enumerate(sorted(points.items()))]
    if not lines:
        lines = [Line("none", none, 0)]
    return Masked(title, rows, Chart("Score by masked heads", "masked query heads", "score, 0 to 100", lines))
