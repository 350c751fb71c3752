"""Head masking: a row for every ranking, a column for every number of masked heads, and what was lost by each."""

import re
from collections.abc import Mapping, Sequence

from evals.head_masking.draws import by_prompt
from evals.report.cells import Cell, Grid, Metric, Row
from evals.report.grids import Cells, filled, ordered, variants
from evals.results.record import Record
from evals.results.schema import Line

RANKINGS = ("traditional", "semantic", "random")

MASKED = Metric("score", better=None)

KEYWORDS = "score_keywords"
"""The score of the paper's plots, which published drops are of."""

Counts = dict[tuple[str, int, str], list[Line]]
"""The lines of every (ranking, masked heads, variant); variants differ in anything else."""


def grid(records: Sequence[Record]) -> Grid:
    """The grid of a model's records, at least one; draws of random heads are averaged within each prompt.

    Columns `K = 3` are mean scores. `drop with the top 10 masked` is what is lost against K = 0, prompt by prompt, in
    points of keywords; it is named by the paper's K where it is known which of ours that is.
    """
    named = papers(records)
    rows: list[tuple[Row, list[Record]]] = []
    by_column: list[Cells] = []
    marked = len({record.protocol for record in records}) > 1
    for protocol in sorted({record.protocol for record in records}):
        mine = [record for record in records if record.protocol == protocol]
        counts = _counts(mine)
        for ranking, variant in _rankings(counts):
            of_row = {
                count: lines for (name, count, other), lines in counts.items() if (name, other) == (ranking, variant)
            }
            unmasked = counts.get(("none", 0, variant)) or counts.get(("none", 0, "")) or []
            rows.append((Row(f"{ranking} heads", None, protocol, variant, {}, marked), mine))
            by_column.append(_cells({0: unmasked, **dict(sorted(of_row.items()))}, named))
    columns = ordered(by_column, _place)
    compared = [column for column in columns if column.startswith("K") and masked_heads(column)]
    first = records[0]
    return Grid(first.model, first.eval, columns, filled(rows, by_column, MASKED), MASKED, compared)


def masked_heads(column: str) -> int:
    """How many heads are masked in a column `K = 3`."""
    return int(column.rpartition(" ")[2])


def _place(column: str) -> tuple[bool, int]:
    """Scores by the number of masked heads, then drops by it."""
    return not column.startswith("K"), int(re.findall(r"\d+", column)[0])


def _counts(records: Sequence[Record]) -> Counts:
    """Of the records of one protocol."""
    counts: Counts = {}
    several = len({record.weights for record in records}) > 1
    for record, variant in zip(records, variants(records), strict=True):
        if several:
            variant = f"{variant} weights {record.weights[:8]}".strip()
        for line in record.covered:
            if "ranking" not in line or "masked" not in line:
                continue
            key = (line["ranking"], line["masked"], variant)
            counts.setdefault(key, []).append(line)
    return counts


def _rankings(counts: Counts) -> list[tuple[str, str]]:
    found = {(ranking, variant) for ranking, _, variant in counts if ranking != "none"}
    return sorted(found, key=lambda place: (_order(place[0]), *place))


def _order(ranking: str) -> int:
    return RANKINGS.index(ranking) if ranking in RANKINGS else len(RANKINGS)


def note(records: Sequence[Record]) -> str:
    """What the columns mean, for a reader of the numbers of a model."""
    scaled = [f"{mine} for {theirs}" for mine, theirs in papers(records).items() if mine]
    draws = {record.task.rpartition("-draw")[2] for record in records if "-draw" in record.task}
    random = f" Random heads are the mean of {len(draws)} draws within each prompt." if draws else ""
    of_paper = f" The paper's numbers of 1,024 heads are scaled to the model's: {', '.join(scaled)}." if scaled else ""
    return (
        f"{records[0].model}: K heads have uniform attention while decoding; drops are in points of keywords, the "
        f"score of the paper's plots, against K = 0 on the same prompts.{random}{of_paper}"
    )


def papers(records: Sequence[Record]) -> dict[int, int]:
    """Which K of 1,024 heads each of our numbers of heads stands for, where every one stands for another."""
    asked: set[int] = set()
    masked: set[int] = set()
    for record in records:
        asked |= set(record.config.get("eval", {}).get("masked", []))
        masked |= {line["masked"] for line in record.covered if "masked" in line}
    return dict(zip(sorted(masked), sorted(asked), strict=True)) if len(masked) == len(asked) else {}


def _cells(counts: Mapping[int, Sequence[Line]], named: Mapping[int, int]) -> Cells:
    """Scores by the number of masked heads, and drops; random draws may differ in number."""
    cells = {f"K = {count}": Cell({"needle": by_prompt(lines)}, 0, 0) for count, lines in counts.items() if lines}
    before = by_prompt(counts[0], KEYWORDS)
    for count, lines in counts.items():
        after = {sample: value for sample, value in by_prompt(lines, KEYWORDS).items() if sample in before}
        if count and after:
            name = f"drop with the top {named[count]} masked" if count in named else f"drop with {count} masked"
            cells[name] = Cell({"needle": {sample: before[sample] - value for sample, value in after.items()}}, 0, 0)
    return cells
