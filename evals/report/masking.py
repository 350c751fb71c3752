"""Head masking: a row for every ranking, a column for every number of masked heads, and what was lost by each."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from evals.report.cells import Cell, Grid, Metric, Row
from evals.report.grids import Cells, filled, variants
from evals.results.record import Record
from evals.results.schema import Line

RANKINGS = ("traditional", "semantic", "random")

MASKED = Metric("score", better=None)

KEYWORDS = "score_keywords"
"""The score of the paper's plots, which published drops are of."""

Prompts = dict[str, list[Line]]
"""Lines of every prompt by id: one, or one for each random draw."""


def grid(records: Sequence[Record]) -> Grid:
    """The grid of a model's records, at least one; draws of random heads are averaged within each prompt.

    Columns `K = 3` are mean scores. `drop with the top 10 masked` is what is lost against K = 0, prompt by prompt, in
    points of keywords; it is named by the paper's K where it is known which of ours that is.
    """
    named = _papers(records)
    rows: list[tuple[Row, list[Record]]] = []
    by_column: list[Cells] = []
    marked = len({record.protocol for record in records}) > 1
    for protocol in sorted({record.protocol for record in records}):
        mine = [record for record in records if record.protocol == protocol]
        counts = _counts(mine)
        for ranking, variant in _rankings(counts):
            of_row = {
                count: prompts
                for (name, count, other), prompts in counts.items()
                if (name, other) == (ranking, variant)
            }
            unmasked = counts.get(("none", 0, variant)) or counts.get(("none", 0, "")) or {}
            rows.append((Row(f"{ranking} heads", None, protocol, variant, {}, marked), mine))
            by_column.append(_cells({0: unmasked, **dict(sorted(of_row.items()))}, named))
    columns: dict[str, None] = {}
    for cells in by_column:
        columns |= dict.fromkeys(column for column in cells if column.startswith("K"))
    ordered = sorted(columns, key=masked_heads)
    drops = [column for cells in by_column for column in cells if column not in columns]
    compared = [column for column in ordered if masked_heads(column)]
    first = records[0]
    return Grid(
        first.model,
        first.eval,
        list(dict.fromkeys([*ordered, *drops])),
        filled(rows, by_column, MASKED),
        MASKED,
        compared,
    )


def masked_heads(column: str) -> int:
    """How many heads are masked in a column `K = 3`."""
    return int(column.rpartition(" ")[2])


def _counts(records: Sequence[Record]) -> dict[tuple[str, int, str], Prompts]:
    """The prompts of every (ranking, masked heads, variant) of one protocol; variants differ in anything else."""
    counts: dict[tuple[str, int, str], Prompts] = {}
    for record, variant in zip(records, variants(records), strict=True):
        for line in record.covered:
            key = (str(line["ranking"]), int(line["masked"]), variant)
            counts.setdefault(key, {}).setdefault(line["id"], []).append(line)
    return counts


def _rankings(counts: Mapping[tuple[str, int, str], Prompts]) -> list[tuple[str, str]]:
    found = {(ranking, variant) for ranking, _, variant in counts if ranking != "none"}
    return sorted(found, key=lambda place: (RANKINGS.index(place[0]), place[1]))


def _papers(records: Sequence[Record]) -> dict[int, int]:
    """Which K of 1,024 heads each of our numbers of heads stands for, where every one stands for another."""
    asked: set[int] = set()
    masked: set[int] = set()
    for record in records:
        asked |= set(record.config.get("eval", {}).get("masked", []))
        masked |= {int(line["masked"]) for line in record.covered}
    return dict(zip(sorted(masked), sorted(asked), strict=True)) if len(masked) == len(asked) else {}


def _cells(counts: Mapping[int, Prompts], named: Mapping[int, int]) -> Cells:
    """Scores by the number of masked heads, and drops; random draws may differ in number."""
    cells = {
        f"K = {count}": Cell({"needle": _means(prompts, "score")}, 0, 0) for count, prompts in counts.items() if prompts
    }
    before = _means(counts[0], KEYWORDS)
    for count, prompts in counts.items():
        after = _means({id: lines for id, lines in prompts.items() if _same_prompt(counts[0].get(id), lines)}, KEYWORDS)
        if count and after:
            name = f"drop with the top {named[count]} masked" if count in named else f"drop with {count} masked"
            cells[name] = Cell({"needle": {id: before[id] - value for id, value in after.items()}}, 0, 0)
    return cells


def _means(prompts: Prompts, field: str) -> dict[str, float]:
    return {id: fmean(line[field] for line in lines) for id, lines in prompts.items()}


def _same_prompt(before: Sequence[Line] | None, after: Sequence[Line]) -> bool:
    return before is not None and {line["prompt_sha256"] for line in [*before, *after]} == {before[0]["prompt_sha256"]}
