"""Tables of long answers: score, length and repetition by kind of request, and a figure of KL over position."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from evals.results.means import USUAL, Asked, Cells, average, by_line, sampled
from evals.results.record import Record
from evals.results.schema import Count, Line, Number, Size, exactly
from evals.results.shows import own_fields
from evals.tables.table import AVERAGE, FIDELITY, SCORE, Metric, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@exactly
class FIELDS(TypedDict, total=False):
    kind: str
    new_tokens: Count
    repeated_8grams: Number
    peak_kept: Size
    kl_per_token: list[Number]


KINDS = ("story", "list", "arithmetic")

LENGTH = Metric("new_tokens", "tokens of the answer", 1, better=None)

REPEATED = Metric(
    "repeated_8grams", "8-grams of words that occurred before in the answer, %", 2, "lower", margin=2.0, largest=100.0
)

PEAK = Metric("peak_kept", "maximum number of KV tokens held per head, before an eviction", 1, better=None)

SECTION = Section(
    "longgen",
    "Long answers",
    note="Score of a story or a list: the share of the requested words or items that are in the answer. Score of "
    "arithmetic: whether the last number is right. Shorter answers and repeated text are signs that eviction damaged "
    "the cache.",
)


def tables(records: Sequence[Record], asked: Asked = USUAL) -> list[Table]:
    """Return tables of score, length, repetition and the peak of held tokens, then of fidelity, by kind of request."""

    def cells_of(of_row: Sequence[Record], metric: Metric) -> Cells:
        return by_line(of_row, metric, _kind) | average(of_row, metric)

    return sampled(records, asked, cells_of, (SCORE, LENGTH, REPEATED, PEAK, *FIDELITY), order=_place, failed=_failed)


def _kind(line: Line) -> str | None:
    return kind if isinstance(kind := line.get("kind"), str) else None


def _place(column: str) -> int:
    return KINDS.index(column) if column in KINDS else len(KINDS)


def _failed(line: Line, column: str) -> bool:
    return column in (AVERAGE, line.get("kind"))


def figure(table: Table) -> "Figure":
    """Draw KL over the position in the answer, or the score over the budget if fidelity was not measured."""
    from evals.longgen.figure import over_position
    from evals.tables.figures import over_budget

    return over_position(table) or over_budget(table)


def browsed(line: Line, prompt: Mapping[str, Any]) -> Line:
    return {name: value for name, value in own_fields(line).items() if name in ("kind", "repeated_8grams")}
