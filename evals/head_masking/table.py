"""Accuracy by number of masked heads, a row for each ranking."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from rich.table import Table

from evals.console import plain
from evals.head_masking.choices import Choice
from evals.head_masking.draws import by_prompt
from evals.results.schema import Line
from evals.results.statistics import interval


def table(title: str, lines: Mapping[Choice, Sequence[Line]], heads: int) -> Table:
    """Mean score with its interval over prompts; draws of the random control are averaged within each prompt."""
    shown = Table(
        title=plain(title),
        caption=f"masked: query heads of {heads} with uniform attention; keywords: the score of the released plots",
    )
    shown.add_column("ranking", no_wrap=True)
    for column in ("masked", "score", "95 % interval", "n", "draws", "keywords"):
        shown.add_column(column, justify="right")
    groups: dict[tuple[str, int], list[Sequence[Line]]] = {}
    for choice, of_choice in lines.items():
        groups.setdefault((choice.ranking, choice.count), []).append(of_choice)
    order = list(dict.fromkeys(ranking for ranking, _ in groups))
    for ranking, count in sorted(groups, key=lambda key: (order.index(key[0]), key[1])):
        draws = groups[ranking, count]
        scores = list(by_prompt(chain.from_iterable(draws)).values())
        keywords = by_prompt(chain.from_iterable(draws), "score_keywords").values()
        bounds = interval(scores)
        shown.add_row(
            plain(ranking),
            str(count),
            f"{fmean(scores):.1f}",
            f"{bounds[0]:.1f} – {bounds[1]:.1f}" if bounds else "–",
            str(len(scores)),
            spread(draws) if ranking == "random" else "",
            f"{fmean(keywords):.1f}",
        )
    return shown


def spread(draws: Sequence[Sequence[Line]]) -> str:
    """How many draws there are, and the means of the worst and the best of them."""
    means = [fmean(line["score"] for line in draw) for draw in draws]
    return f"{len(means)} ({min(means):.1f} – {max(means):.1f})"
