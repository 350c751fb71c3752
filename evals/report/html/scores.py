"""The scores on the page: tables of means, sentences about them, and charts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from compresskv.budget import smallest_first
from evals.experiments import ALL
from evals.report import paper
from evals.report.html.chart import Chart, Line, Point
from evals.report.html.reading import Tree, spread
from evals.results.means import groups_of
from evals.results.shows import hook
from evals.results.tails import tails
from evals.tables import text
from evals.tables.compare import Question, Verdict, subject_of, unpaired, verdicts
from evals.tables.methods import METHODS
from evals.tables.table import KNOWN, OTHERS, SCORE, Cell, Row, Section, Table, Texts, full_of

LAYER_CHARTS = 8
"""Maximum number of budgets for which the tokens by layer are drawn; the budgets are evenly spaced."""

LINES = 12
"""Maximum number of lines in a chart over budgets or layers; tables have all rows."""

FIRST = 10
"""Maximum number of comparisons shown first for a model and evaluation; you can unfold the other comparisons."""

COMPARED_BY = (SCORE, KNOWN["kl"])
"""The metrics that have verdicts."""

COMPARED = 12
"""Maximum number of models and evaluations for which the page shows verdicts."""


@dataclass(frozen=True)
class Board:
    """The content for one model and evaluation.

    `columns`: columns of the table with their heads. The average comes first, so that you see it without scrolling.
    `texts`: tables of texts, shown instead of `table`; `appendix`: tables of texts below it. `over`: charts over the
    columns, for tables without budgets. `verdicts`, `closeness`: comparisons of scores and of KL, if it has any
    (`compared`).
    """

    kind: str
    title: str
    section: Section
    table: Table
    columns: Mapping[str, str]
    texts: Sequence[Texts] = ()
    appendix: Sequence[Texts] = ()
    over: Sequence[Chart] = ()
    verdicts: Sequence[Verdict] = ()
    closeness: Sequence[Verdict] = ()
    shares: Sequence[str] = ()
    score: Chart | None = None
    kl: Chart | None = None
    layers: Sequence[Chart] = ()
    left_out: int = 0
    compared: bool = False
    notes: Sequence[str] = ()

    @property
    def first(self) -> Sequence[Verdict]:
        """The comparisons shown first: differences over all samples, at most `FIRST` comparisons."""
        return [each for each in self.verdicts if each.outcome == "differs" and not each.partial][:FIRST]

    @property
    def rest(self) -> dict[str, list[Verdict]]:
        """All other comparisons, by kind."""
        others = [each for each in self.verdicts if each not in self.first]
        whole = [each for each in others if not each.partial]
        kinds = {
            "More differences of score": [each for each in whole if each.outcome == "differs"],
            "Scores that are equivalent within the margin": [each for each in whole if each.outcome == "equivalent"],
            "Scores that are undecided": [each for each in whole if each.outcome == "undecided"],
            "Scores over part of the samples": [each for each in others if each.partial],
            "KL to the full cache": [each for each in self.closeness if not each.partial],
            "KL to the full cache, over part of the samples": [each for each in self.closeness if each.partial],
        }
        return {name: of_kind for name, of_kind in kinds.items() if of_kind}


def boards(tree: Tree, asked: Question = ALL) -> Iterator[Board]:
    """Yield a board for each model and evaluation, with the comparisons that are `asked` for."""
    kept = {setting.record.path: setting.kept for setting in tree.settings}
    made = 0
    for records in groups_of([setting.record for setting in tree.settings]):
        kind = records[0].kind
        section = hook(kind, "SECTION", OTHERS)
        score, *fidelity = hook(kind, "tables")(records) or [None]
        if score is None or not score.columns:
            continue
        score = paper.beside(section.published, score)
        title = f"{score.model} · {text.title_of(score.eval)}"
        ordered = sorted(score.columns, key=lambda column: column != score.overall)
        shown = title, section, score, {column: column_title(column, score) for column in ordered}
        appendix = hook(kind, "appendix", tails)(records)
        if score.axis:
            texts = hook(kind, "texts", lambda records: [])(records)
            yield Board(kind, *shown, texts=texts, appendix=appendix, over=[over_columns(score)])
            continue
        kl = next((table for table in fidelity if table.metric.field == "kl"), None)
        styles = {label: style for style, label in enumerate(dict.fromkeys(row.label for row in _ordered(score)))}
        drawn = {label: style for label, style in styles.items() if style < LINES}
        over = f"Score, {column_title(score.overall, score)}"
        nats = "KL, nats per token (lower is closer)"
        compared = made < COMPARED
        made += 1
        subject = subject_of(ALL, score)
        run_instead = f"{ALL.subject} was not run here: {subject} is compared with the other methods."
        other_subject = [] if subject == ALL.subject else [run_instead]
        yield Board(
            kind,
            *shown,
            appendix=appendix,
            verdicts=sorted(verdicts(asked, score), key=_importance) if compared else [],
            closeness=sorted(verdicts(asked, kl), key=_importance) if kl and compared else [],
            shares=list(_shares(score)),
            score=_over_budget(score, over, "score, 0 to 100", drawn),
            kl=_over_budget(kl, "KL to the full cache", nats, drawn) if kl else None,
            layers=list(_layers(score, drawn, kept)),
            left_out=len(styles) - len(drawn),
            compared=compared,
            notes=[*other_subject, *unpaired(score)],
        )


def over_columns(table: Table) -> Chart:
    """Return a chart with the columns of `table.xs` on the x axis."""
    lines = []
    for style, row in enumerate(table.rows):
        if points := [_point(x, cell) for column, x in table.xs.items() if (cell := row.cells.get(column))]:
            lines.append(Line(str(row.name), points, style))
    title = table.metric.title or table.metric.field
    log = len(table.xs) > 1 and min(table.xs.values()) > 0
    return Chart(title[:1].upper() + title[1:], table.axis, title, lines, log=log, digits=table.metric.digits)


def _ordered(table: Table) -> list[Row]:
    """Sort the rows: the subject, the full cache, the other methods in their order, then variants."""
    return sorted(
        table.rows, key=lambda row: (bool(row.name.variant), row.name.method != ALL.subject, row.budget is not None)
    )


def _point(x: float, cell: Cell) -> Point:
    low, high = cell.interval or (None, None)
    return Point(x, cell.mean, low, high, cell.partial)


def _importance(verdict: Verdict) -> tuple[bool, tuple[int, float], int]:
    """Return the sort key of a comparison: comparisons with the paper's methods at the smallest budgets come first."""
    order = list(METHODS.values())
    place = order.index(verdict.second) if verdict.second in order else len(order)
    return place > order.index(ALL.subject), smallest_first(verdict.budget), place


def sentence(verdict: Verdict) -> str:
    """Describe a comparison of scores or of KL in words, without line breaks around signs."""
    mean, bounds, digits = verdict.mean, verdict.interval, 3 if verdict.lower else 1
    worse, better = verdict.ordered
    if mean < 0 and bounds:
        bounds = -bounds[1], -bounds[0]
    between = f"95 % interval {text.minus(text.bounds(bounds, digits + 1, '{} to {}'))}, " if bounds else ""
    p = f"p = {text.probability(verdict.p)}".replace("= <", "<")
    at = "With the full cache" if verdict.budget is None else f"At budget {verdict.budget}"
    unit = "nats per token" if verdict.lower else "points"
    gap = f"{abs(mean):.{digits}f} {unit}"
    by = f"{better}'s mean is {gap} {'lower' if verdict.lower else 'higher'}" if mean else "equal means"
    n = f"n = {verdict.n}"
    if verdict.shown:
        how = "closer to the full cache" if verdict.lower else "better"
        said = f"{better} is {how} than {worse} by {gap} ({between}{p}, {n})"
    elif verdict.outcome == "equivalent" and verdict.equivalence is not None:
        proof = f"{by}, {between}p of equivalence {text.probability(verdict.equivalence)}, {n}"
        said = f"{verdict.first} and {verdict.second} are equivalent within {verdict.margin:g} {unit} ({proof})"
    else:
        needed = f"; about {verdict.needed:,} samples would decide" if verdict.needed and bounds else ""
        pair = f"{verdict.first} and {verdict.second}"
        said = f"the samples show neither a difference nor equivalence of {pair} ({by}, {between}{p}, {n}{needed})"
    return re.sub(r" ([=<]) | (%)", lambda sign: sign[0].replace(" ", "\u00a0"), f"{at}, {said}.")


def column_title(column: str, table: Table) -> str:
    """Return the column's title as in papers, with the number of tasks if some are missing."""
    cells = [row.cells[column] for row in table.rows if column in row.cells]
    there, tasks = max((len(cell.strata), cell.tasks) for cell in cells)
    if there >= tasks:
        return table.head(column)
    return f"{'average' if column == table.average else table.head(column)} ({there} of {tasks} tasks)"


def _shares(table: Table) -> Iterator[str]:
    """Say what share of the full cache's score the subject reaches, and with what share of its tokens."""
    rows = _ordered(table)
    fulls = [row for row in rows if row.budget is None and table.overall in row.cells]
    for row in rows:
        mine = row.cells.get(table.overall)
        if row.name.method != ALL.subject or row.name.variant or row.budget is None or mine is None or mine.partial:
            continue
        full = full_of(row, [other for other in fulls if other.cells[table.overall].samples == mine.samples])
        whole = full.cells[table.overall] if full else None
        if full is None or whole is None or not whole.mean:
            continue
        kept, all_kept = row.sizes.get("realised_budget"), full.sizes.get("realised_budget")
        tokens = f", keeping {100 * kept / all_kept:.0f}\u00a0% of its tokens" if kept and all_kept else ""
        share = f"{100 * mine.mean / whole.mean:.0f}\u00a0% of the full cache's {whole.mean:.1f}"
        yield f"{row.label} at budget {row.budget} scores {mine.mean:.1f}: {share}{tokens} (n\u00a0=\u00a0{mine.n})."


def _over_budget(table: Table, title: str, y_label: str, styles: dict[str, int]) -> Chart | None:
    """Return a chart of averages over the budget. The full cache is a level; its KL is 0 and not drawn."""
    points: dict[str, list[Point]] = {}
    levels: list[Line] = []
    for row in table.rows:
        cell = row.cells.get(table.overall)
        if cell is None or row.label not in styles:
            continue
        point = _point(table.place_of_budget(row), cell)
        if row.budget is not None:
            points.setdefault(row.label, []).append(point)
        elif table.metric == SCORE:
            levels.append(Line(row.label, [point], styles[row.label], True))
    if not points:
        return None
    lines = [
        Line(label, sorted(of_line, key=lambda point: point.x), styles[label])
        for label, of_line in sorted(points.items(), key=lambda item: styles[item[0]])
    ]
    digits = 1 if table.metric == SCORE else 3
    return Chart(title, table.budget_axis, y_label, [*lines, *levels], log=True, digits=digits)


def _layers(table: Table, styles: dict[str, int], kept: Mapping[Path, Sequence[float]]) -> Iterator[Chart]:
    """Yield a chart of the tokens kept by layer for at most `LAYER_CHARTS` budgets, the smallest first."""
    budgets = sorted((budget for budget in table.budgets if budget is not None), key=smallest_first)
    for budget in spread(budgets, LAYER_CHARTS):
        rows = table.budgets[budget]
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
