"""Head masking tables: a row for every ranking, columns with scores and drops by the number of masked heads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

from evals.niah import tables as needles
from evals.results.means import USUAL, Asked, Cells, cells, filled
from evals.results.names import names
from evals.results.record import Record, covered_lines
from evals.results.schema import Count, Label, Line, Number, exactly
from evals.results.shows import own_fields
from evals.tables import statistics, text
from evals.tables.methods import Name
from evals.tables.table import SCORE, Key, Row, Section, Table, Texts

RANKINGS = ("none", "traditional", "semantic", "random")

MASKED = replace(SCORE, better=None, axis="score (ROUGE-1 recall of the answer)")

KEYWORDS = "score_keywords"
"""The score in the paper's plots and in published drops."""

HEADER = ("ranking", "masked", "score", "95 % interval", "n", "draws", "keywords")

Counts = dict[tuple[str, int, str], list[Line]]
"""Lines by (ranking, masked heads, variant). Variants differ in any other setting."""


@exactly
class FIELDS(needles.FIELDS, total=False):
    ranking: Label
    masked: Count
    score_keywords: Number


SECTION = Section(
    "masking",
    "Head masking",
    "Needle scores with the full cache while the best heads of a ranking attend to all tokens equally. Random heads, "
    "averaged over draws, are the control.",
)

traits = needles.traits


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Return the table of a model's records, at least one. Draws of random heads are averaged within each prompt.

    Columns `K = 3` are mean scores. `drop with the top 10 masked` is the mean loss of keywords (points) against K = 0
    on the same prompts; its name has the paper's K if that is known.
    """
    named = papers(records)
    rows: list[Row] = []
    by_column: list[Cells] = []
    masked: set[int] = set()
    marked = len({record.protocol for record in records}) > 1
    for protocol in sorted({record.protocol for record in records}):
        mine = [record for record in records if record.protocol == protocol]
        counts = _counts(mine)
        masked |= {count for _, count, _ in counts}
        found = {(ranking, variant) for ranking, _, variant in counts if ranking != "none"}
        for ranking, variant in sorted(found, key=lambda place: (_place(place[0]), *place)):
            of_row = {count: lines for (name, count, of), lines in counts.items() if (name, of) == (ranking, variant)}
            unmasked = counts.get(("none", 0, variant)) or counts.get(("none", 0, "")) or []
            rows.append(Row(Name(f"{ranking} heads", None, protocol, variant, marked), records=mine))
            by_column.append(_cells({0: unmasked, **dict(sorted(of_row.items()))}, named))
    if not rows:
        return []
    every = sorted({0, *masked})
    columns = [*map(_score, every), *(_drop(count, named) for count in every)]
    present = [column for column in columns if any(column in of_row for of_row in by_column)]
    xs = {_score(count): float(count) for count in every}
    compared = [column for column in present if xs.get(column)]
    shown = filled(rows, by_column, MASKED, lambda line, column: True)
    first = records[0]
    return [Table(first.model, first.eval, present, shown, MASKED, "", compared, xs=xs, axis="masked query heads (K)")]


def _score(count: int) -> str:
    return f"K = {count}"


def _drop(count: int, named: Mapping[int, int]) -> str:
    return f"drop with the top {named[count]} masked" if count in named else f"drop with {count} masked"


def _place(ranking: str) -> int:
    return RANKINGS.index(ranking) if ranking in RANKINGS else len(RANKINGS)


def _counts(records: Sequence[Record]) -> Counts:
    """Group the lines of one protocol's records."""
    counts: Counts = {}
    several = len({record.weights for record in records}) > 1
    for record, name in zip(records, names(records), strict=True):
        variant = f"{name.variant} weights {record.weights[:8]}".strip() if several else name.variant
        for line in record.covered:
            if "ranking" in line and "masked" in line:
                counts.setdefault((line["ranking"], line["masked"], variant), []).append(line)
    return counts


def _cells(counts: Mapping[int, Sequence[Line]], named: Mapping[int, int]) -> Cells:
    """Return scores and drops by number of masked heads. Prompts may have different numbers of random draws."""
    columns = {_score(count): {"needle": by_prompt(lines)} for count, lines in counts.items() if lines}
    before = by_prompt(counts[0], KEYWORDS)
    for count, lines in counts.items():
        after = {sample: value for sample, value in by_prompt(lines, KEYWORDS).items() if sample in before}
        if count and after:
            lost = {sample: before[sample] - value for sample, value in after.items()}
            columns[_drop(count, named)] = {"needle": lost}
    return cells(columns)


def by_prompt(lines: Iterable[Line], field: str = "score") -> dict[Key, float]:
    """Average `field` over all `lines` of each prompt, with equal weights.

    Prompts are identified by id and hash, or by id alone in results without hashes.
    """
    values: dict[Key, list[float]] = {}
    for line in lines:
        if field in line:
            values.setdefault((line["id"], str(line.get("prompt_sha256"))), []).append(line[field])
    return {sample: fmean(of_prompt) for sample, of_prompt in values.items()}


def texts(records: Sequence[Record]) -> list[Texts]:
    """Return a table for each protocol and weights, with a row for every ranking and number of masked heads."""
    shown = []
    for protocol, weights in sorted({(record.protocol, record.weights) for record in records}):
        mine = [record for record in records if (record.protocol, record.weights) == (protocol, weights)]
        several = len({record.weights for record in records if record.protocol == protocol}) > 1
        place = [mine[0].model, mine[0].eval, protocol, *([f"weights {weights[:8]}"] if several else [])]
        draws_of: dict[tuple[str, int], list[Sequence[Line]]] = {}
        for record in mine:
            line = next(iter(record.covered), {})
            draws_of.setdefault((str(line.get("ranking")), int(line.get("masked") or 0)), []).append(record.covered)
        body = []
        for ranking, count in sorted(draws_of, key=lambda of: (_place(of[0]), of)):
            draws = draws_of[ranking, count]
            lines = list(chain.from_iterable(draws))
            scores, keywords = ([*by_prompt(lines, field).values()] for field in ("score", KEYWORDS))
            interval = text.bounds(statistics.interval(scores), 2, "{} – {}") or text.NONE
            means = [fmean(line["score"] for line in draw) for draw in draws if draw]
            spread = f"{len(means)} ({min(means):.1f} – {max(means):.1f})" if ranking == "random" else ""
            cells = [ranking, str(count), text.number(fmean(scores), 1), interval, str(len(scores))]
            body.append([*cells, spread, text.number(fmean(keywords), 1) if keywords else text.NONE])
        caption = "masked: query heads with uniform attention; keywords: the score of the released plots"
        shown.append(Texts(" · ".join(place), HEADER, body, caption))
    return shown


def notes(records: Sequence[Record], tables: Sequence[Table], view: str = "") -> list[str]:
    """Return an explanation of a model's columns."""
    scaled = [f"{mine} for {theirs}" for mine, theirs in papers(records).items() if mine]
    draws = {record.task.rpartition("-draw")[2] for record in records if "-draw" in record.task}
    random = f" Random heads are the mean of {len(draws)} draws within each prompt." if draws else ""
    of_paper = f" The paper's numbers of 1,024 heads are scaled to the model's: {', '.join(scaled)}." if scaled else ""
    return [
        f"{records[0].model}: K heads have uniform attention while decoding; drops are differences from K = 0 on the "
        f"same prompts, in points of keywords (the score of the paper's plots).{random}{of_paper}"
    ]


def papers(records: Sequence[Record]) -> dict[int, int]:
    """Return the paper's K (of 1,024 heads) for each number of masked heads; empty if two K give the same number."""
    asked = {count for record in records for count in record.config.get("eval", {}).get("masked", [])}
    masked = {line["masked"] for line in covered_lines(records) if "masked" in line}
    return dict(zip(sorted(masked), sorted(asked), strict=True)) if len(masked) == len(asked) else {}


def browsed(line: Line, prompt: Mapping[str, object]) -> Line:
    of_line = {name: value for name, value in own_fields(line).items() if name in ("ranking", "masked")}
    return needles.browsed(line, prompt) | of_line
