"""Scores of the page: grids of means, what they say in words, and their charts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evals.kinds import TITLES
from evals.longbench.tasks import CATEGORIES, ENGLISH, TASKS
from evals.report import paper
from evals.report.cells import AVERAGE_OF_16, SCORE, Cell, Grid, Row, ranks
from evals.report.grids import by_task, grids, groups_of
from evals.report.html.chart import Chart, Line, Point
from evals.report.html.reading import Tree, spread
from evals.report.items import ALL
from evals.report.labels import METHODS
from evals.report.page import budget_text, probability
from evals.report.verdicts import Verdict, subject_of, unpaired, verdicts
from evals.results import statistics
from evals.results.record import Record

PAPER = "table1_longbench"
"""The published table that LongBench scores stand beside."""

LAYER_CHARTS = 8
"""Budgets whose layers are drawn at most, evenly spaced."""

LINES = 12
"""Lines of a chart at most; the tables have all."""

FIRST = 10
"""Comparisons of a model and evaluation that stand before the rest."""

COMPARED = 12
"""Models and evaluations whose verdicts the overview has at most."""


@dataclass(frozen=True)
class Sentence:
    """What a comparison says: `better` is whether it shows a difference, `partial`: over part of the samples."""

    text: str
    better: bool
    partial: bool = False


@dataclass(frozen=True)
class CellText:
    """A cell as it is shown: `rank` 1 and 2 are marked; `paper` and whether it can be compared."""

    mean: str
    interval: str
    partial: str
    rank: int | None
    paper: str
    comparable: bool


@dataclass(frozen=True)
class TableRow:
    budget: str
    method: str
    cells: Sequence[CellText | None]


@dataclass(frozen=True)
class Board:
    """Everything of one model and evaluation whose rows are methods within a budget; `compared`: with verdicts."""

    model: str
    kind: str
    title: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    sentences: Sequence[Sentence]
    closeness: Sequence[Sentence]
    shares: Sequence[str]
    score: Chart | None
    kl: Chart | None
    layers: Sequence[Chart]
    left_out: int
    compared: bool
    notes: Sequence[str]

    @property
    def first(self) -> Sequence[Sentence]:
        """The comparisons that stand before the rest: shown differences over all samples, at most `FIRST`."""
        return [each for each in self.sentences if each.better and not each.partial][:FIRST]

    @property
    def rest(self) -> dict[str, list[Sentence]]:
        """All others, by what they are."""
        others = [each for each in self.sentences if each not in self.first]
        whole = [each for each in others if not each.partial]
        kinds = {
            "More differences of score": [each for each in whole if each.better],
            "Scores without a shown difference": [each for each in whole if not each.better],
            "Scores over part of the samples": [each for each in others if each.partial],
            "KL to the full cache": [each for each in self.closeness if not each.partial],
            "KL to the full cache, over part of the samples": [each for each in self.closeness if each.partial],
        }
        return {name: of_kind for name, of_kind in kinds.items() if of_kind}

    @property
    def partial(self) -> bool:
        return any(cell and cell.partial for row in self.rows for cell in row.cells)


def boards(tree: Tree) -> Iterator[tuple[Board, Grid]]:
    """A board for each model and evaluation, with the grid that it is made of; head masking has none."""

    kept = {setting.record.path: setting.kept for setting in tree.settings}
    for made, records in enumerate(groups_of(setting.record for setting in tree.settings)):
        of_model, *fidelity = grids(ALL, records)
        of_model = paper.beside(PAPER, of_model) if of_model.kind == "longbench" else by_task(of_model)
        kl = next((each for each in fidelity if each.metric.field == "kl"), None)
        yield _board(of_model, kl, kept, made < COMPARED), of_model


def _board(of_model: Grid, kl: Grid | None, kept: Mapping[Path, Sequence[float]], compared: bool) -> Board:
    lines = {label: style for style, label in enumerate(dict.fromkeys(row.label for row in _ordered(of_model)))}
    shown = {label: style for label, style in lines.items() if style < LINES}
    return Board(
        of_model.model,
        of_model.kind,
        f"{of_model.model} · {TITLES.get(of_model.eval, of_model.eval)}",
        [column_title(column, of_model) for column in _columns(of_model)],
        list(_rows(of_model)),
        _sentences(of_model) if compared else [],
        _sentences(kl) if kl and compared else [],
        list(_shares(of_model)),
        _over_budget(of_model, f"Score, {column_title(of_model.overall, of_model)}", "score, 0 to 100", shown),
        _over_budget(kl, "KL to the full cache", "KL, nats per token (lower is closer)", shown) if kl else None,
        list(_layers(of_model, shown, kept)),
        len(lines) - len(shown),
        compared,
        [*_other_subject(of_model), *unpaired(of_model)],
    )


def _other_subject(of_model: Grid) -> list[str]:
    """A sentence where what everything else is compared with is not there."""
    subject = subject_of(ALL, of_model)
    return [] if subject == ALL.subject else [f"{ALL.subject} was not run here: {subject} is compared with the others."]


def _columns(of_model: Grid) -> list[str]:
    """What it comes to first, then what it is made of: a wide table shows its average without being moved."""
    return sorted(of_model.columns, key=lambda column: column != of_model.overall)


def _ordered(of_model: Grid) -> list[Row]:
    """The subject first, then the full cache, then the others as they come; last what has a variant's name."""
    return sorted(of_model.rows, key=lambda row: (bool(row.variant), row.method != ALL.subject, row.budget is not None))


def _rows(of_model: Grid) -> Iterator[TableRow]:
    for budget, rows in of_model.budgets.items():
        columns = _columns(of_model)
        ranked = {column: ranks(column, rows) for column in columns}
        for place, row in enumerate(rows):
            cells: list[CellText | None] = []
            for column in columns:
                cell = row.cells.get(column)
                cells.append(_cell(cell, ranked[column].get(place), column == of_model.overall) if cell else None)
            yield TableRow(budget_text(budget), row.label, cells)


def _cell(cell: Cell, rank: int | None, with_interval: bool) -> CellText:
    bounds = cell.interval if with_interval else None
    interval = f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else ""
    partial = f"{cell.counted} of {cell.of}" if cell.partial else ""
    if cell.published is None:
        published = ""
    elif cell.difference is None:
        published = f"paper {cell.published:.2f}, not comparable: {cell.apart}"
    else:
        published = f"paper {cell.published:.2f} ({cell.difference:+z.2f})"
    return CellText(f"{cell.mean:.2f}", interval, partial, rank, published, cell.difference is not None)


def _sentences(of_model: Grid) -> list[Sentence]:
    """What matters first: comparisons with the methods that the paper compares with, at the smallest budgets."""
    return [sentence(each) for each in sorted(verdicts(ALL, of_model), key=_importance)]


def _importance(verdict: Verdict) -> tuple[bool, int, int]:
    order = list(METHODS.values())
    place = order.index(verdict.second) if verdict.second in order else len(order)
    return place > order.index(ALL.subject), verdict.budget or 0, place


def sentence(verdict: Verdict) -> Sentence:
    """A comparison of scores or of KL in words."""
    first, second, mean, bounds = verdict.first, verdict.second, verdict.mean, verdict.interval
    digits = 3 if verdict.lower else 1
    if (mean > 0) != verdict.lower:
        first, second = second, first
    if mean < 0 and bounds:
        bounds = -bounds[1], -bounds[0]
    between = f"95\u00a0% interval {signed(bounds[0], digits)} to {signed(bounds[1], digits)}, " if bounds else ""
    p = f"p {probability(verdict.p)}" if verdict.p < 0.001 else f"p = {probability(verdict.p)}"
    # No line breaks around signs.
    numbers = (
        f"{between}{p}, n = {verdict.n}".replace(" = ", "\u00a0=\u00a0")
        .replace(" < ", "\u00a0<\u00a0")
        .replace(" %", "\u00a0%")
    )
    at = "With the full cache" if verdict.budget is None else f"At budget {verdict.budget}"
    gap = f"{abs(mean):.{digits}f} {'nats per token' if verdict.lower else 'points'}"
    if verdict.p < statistics.ALPHA:
        better = "closer to the full cache" if verdict.lower else "better"
        return Sentence(f"{at}, {first} is {better} than {second} by {gap} ({numbers}).", True, verdict.partial)
    needed = f"; about {verdict.needed:,} samples would tell them apart" if verdict.needed and bounds else ""
    by = f"{first}'s mean is {gap} {'lower' if verdict.lower else 'higher'}" if mean else "equal means"
    text = f"{at}, no difference is shown between {verdict.first} and {verdict.second}"
    return Sentence(f"{text} ({by}, {numbers}{needed}).", False, verdict.partial)


def signed(value: float, digits: int) -> str:
    """Rounded, with the minus that numbers have."""
    return f"{value:z.{digits}f}".replace("-", "−")


def column_title(column: str, of_model: Grid) -> str:
    """The column's name; averages of LongBench say over how many of their tasks they are."""
    if of_model.kind != "longbench" or column not in (*CATEGORIES, AVERAGE_OF_16):
        return column
    tasks = [task for task in ENGLISH if column == AVERAGE_OF_16 or TASKS[task].category == column]
    there = sum(task in of_model.columns for task in tasks)
    if there == len(tasks):
        return column
    name = "average" if column == AVERAGE_OF_16 else column
    return f"{name} ({there} of {len(tasks)} tasks)"


def _shares(of_model: Grid) -> Iterator[str]:
    """How much of the full cache's score the subject reaches, and with how much of its tokens."""
    rows = _ordered(of_model)
    for row in rows:
        mine = row.cells.get(of_model.overall)
        if row.method != ALL.subject or row.variant or row.budget is None or mine is None or mine.partial:
            continue
        full = next((other for other in rows if _full_of(other, row, of_model.overall)), None)
        whole = full.cells[of_model.overall] if full else None
        if full is None or whole is None or not whole.mean:
            continue
        kept, all_kept = _kept_tokens(row.records), _kept_tokens(full.records)
        tokens = f", keeping {100 * kept / all_kept:.0f}\u00a0% of its tokens" if kept and all_kept else ""
        share = f"{100 * mine.mean / whole.mean:.0f}\u00a0% of the full cache's {whole.mean:.1f}"
        yield f"{row.label} at budget {row.budget} scores {mine.mean:.1f}: {share}{tokens} (n\u00a0=\u00a0{mine.n})."


def _full_of(other: Row, row: Row, column: str) -> bool:
    """Whether `other` is the full cache on the same samples as `row`."""
    alike = other.budget is None and other.protocol == row.protocol and column in other.cells
    return alike and other.cells[column].samples == row.cells[column].samples


def _kept_tokens(records: Sequence[Record]) -> float | None:
    values = [record.summary.get("realised_budget") for record in records if record.summary]
    numbers = [value for value in values if isinstance(value, (int, float))]
    return fmean(numbers) if numbers else None


def _over_budget(of_model: Grid, title: str, y_label: str, styles: dict[str, int]) -> Chart | None:
    """The average of every method over the budget; the full cache's score is a level line, its KL is 0."""
    points: dict[str, list[Point]] = {}
    levels: list[Line] = []
    for row in of_model.rows:
        cell = row.cells.get(of_model.overall)
        if cell is None or row.label not in styles:
            continue
        low, high = cell.interval or (None, None)
        point = Point(row.budget or 0, cell.mean, low, high, cell.partial)
        if row.budget is not None:
            points.setdefault(row.label, []).append(point)
        elif of_model.metric == SCORE:
            levels.append(Line(row.label, [point], styles[row.label], True))
    if not points:
        return None
    lines = [
        Line(label, sorted(of_line, key=lambda point: point.x), styles[label])
        for label, of_line in sorted(points.items(), key=lambda item: styles[item[0]])
    ]
    digits = 1 if of_model.metric == SCORE else 3
    return Chart(title, "budget (KV tokens per layer and head)", y_label, [*lines, *levels], log=True, digits=digits)


def _layers(of_model: Grid, styles: dict[str, int], kept: Mapping[Path, Sequence[float]]) -> Iterator[Chart]:
    """Tokens kept by layer: a chart for every budget or `LAYER_CHARTS` of them, the smallest first."""
    budgets = sorted(budget for budget in of_model.budgets if budget is not None)
    for budget in spread(budgets, LAYER_CHARTS):
        rows = of_model.budgets[budget]
        lines = []
        for row in rows:
            means = [kept[record.path] for record in row.records if kept.get(record.path)]
            if row.label not in styles or not means or len({len(layers) for layers in means}) > 1:
                continue
            points = [Point(place, round(fmean(layer), 1)) for place, layer in enumerate(zip(*means, strict=True))]
            lines.append(Line(row.label, points, styles[row.label]))
        if lines:
            ordered = sorted(lines, key=lambda line: line.style)
            yield Chart(f"Budget {budget}", "layer", "KV tokens kept per head", ordered, marked=False)
