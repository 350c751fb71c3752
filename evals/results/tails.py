"""The tails of fidelity: how far a setting is from the full cache in its worst tokens, and where in the answer.

All values are computed from the lines: `kl_per_token`, `agreement` and the answers. Lines of older versions, without
`kl_per_token`, have no value. The KL of each task, prompt length or kind is a column of an evaluation's KL table.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from evals.results.means import USUAL, Asked, key, rows_of
from evals.results.record import Record
from evals.results.schema import Line
from evals.tables.table import Key, Row, Texts, full_of
from evals.tables.text import NONE, number, title_of

THIRDS = ("first third", "middle", "last third")

HEADER = (
    *("setting", "n", "tokens", "KL", "median", "99 %", "maximum", *THIRDS),
    *("changed tokens, %", "equal answers, %"),
)

CAPTION = (
    "KL from the full cache in nats, over all tokens of the full cache's answers that eviction can affect: mean, "
    "median, 99th percentile, maximum, and means over the thirds of each answer. Changed tokens: tokens whose most "
    "probable token differs from the full cache's. With fidelity.tokens=N, tokens and thirds refer to the full cache's "
    "continuation. Equal answers: generated texts that equal the full cache's text; an answer of one token can be "
    "equal because it is predicted before eviction. "
    "The full cache in another batch shows the noise of kernels; KL of settings below 0.0001 is not resolved."
)

ELSEWHERE = "in another batch"


def tails(records: Sequence[Record], asked: Asked = USUAL) -> list[Texts]:
    """Return a table with a row per setting of a model and evaluation; the full cache is the control. None if empty."""
    rows = rows_of(records, asked)
    fulls = [row for row in rows if row.budget is None]
    body = []
    for row in rows:
        if row.budget is None:
            name, prefix, equal = f"{row.name} {ELSEWHERE}", "control_", NONE
        else:
            name, prefix, equal = str(row.name), "", _equal_answers(row, full_of(row, fulls))
        fields = (f"{prefix}kl_per_token", f"{prefix}agreement")
        covered = [line for record in row.records for line in record.covered]
        lines = [line for line in covered if all(line.get(field) not in (None, []) for field in fields)]
        if lines:
            body.append([name, *_tail(lines, prefix), equal])
    title = f"{records[0].model}, {title_of(records[0].eval)}: tails of fidelity"
    return [Texts(title, HEADER, body, CAPTION)] if body else []


def _tail(lines: Sequence[Line], prefix: str) -> list[str]:
    """Return the cells of lines that have KL per token, without the name and the equal answers."""
    of_lines = [np.array(line[f"{prefix}kl_per_token"], dtype=float) for line in lines]
    tokens = np.concatenate(of_lines)
    middle, high = np.quantile(tokens, [0.5, 0.99])
    changed = sum((1 - line[f"{prefix}agreement"]) * len(kl) for line, kl in zip(lines, of_lines, strict=True))
    values = (tokens.mean(), middle, high, tokens.max(), *thirds(of_lines))
    nats = [NONE if np.isnan(value) else _nats(float(value)) for value in values]
    return [str(len(lines)), str(len(tokens)), *nats, number(100 * changed / len(tokens))]


def thirds(answers: Sequence[np.ndarray]) -> list[float]:
    """Return the mean over the tokens in each third of the answers; NaN for a third without tokens.

    Token i of n, from 0, is in third ⌊3 (i + ½) / n⌋. A single token is in the middle third.
    """
    places = np.concatenate([(3 * (np.arange(len(kl)) + 0.5) / len(kl)).astype(int) for kl in answers])
    tokens = np.concatenate(answers)
    return [float(tokens[places == third].mean()) if (places == third).any() else np.nan for third in range(3)]


def _equal_answers(row: Row, full: Row | None) -> str:
    """Return the percentage of samples with the same text as the full cache; `NONE` if the samples have no texts."""
    theirs = _answers(full) if full else {}
    pairs = [(answer, theirs[sample]) for sample, answer in _answers(row).items() if sample in theirs]
    return number(100 * fmean(mine == other for mine, other in pairs)) if pairs else NONE


def _answers(row: Row) -> Mapping[Key, str]:
    lines = ((record, line) for record in row.records for line in record.covered)
    return {key(record, line): line["prediction"] for record, line in lines if "prediction" in line}


def _nats(value: float) -> str:
    """Format with four decimals, or with three digits below 0.0001, as for the noise of kernels."""
    return number(value, 4) if value == 0 or abs(value) >= 5e-4 else f"{value:.2e}"
