"""Choose masked heads: the best of a ranking over all layers, and random ones as a control."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compresskv.calibration import HeadScores
from compresskv.engine.masking import Heads
from compresskv.errors import UserError

OF = 1024
"""Heads of the paper's models: 32 layers of 32."""

RETRIEVING = 100
"""Of 1,024: the random control excludes this many of the best heads of each ranking, as in the released code."""

Place = tuple[int, int]
"""Layer and query head."""


@dataclass(frozen=True)
class Choice:
    """`count` masked heads of a `ranking`: "semantic", "traditional", "random", or "none"."""

    ranking: str
    count: int
    draw: int | None
    heads: Heads

    @property
    def name(self) -> str:
        """The name of its task, such as `semantic-3` or `random-3-draw0`."""
        return f"{self.ranking}-{self.count}" + ("" if self.draw is None else f"-draw{self.draw}")


def choices(masked: Sequence[int], draws: int, scores: Mapping[str, HeadScores]) -> list[Choice]:
    """All choices: `masked` of 1,024 heads of each ranking, and `draws` random choices of the same sizes.

    `scores` by ranking, all of one shape. Raises `UserError` if the random control has too few heads.
    """
    rankings = {name: ranked(table) for name, table in scores.items()}
    layers = len(next(iter(scores.values())))
    total = len(next(iter(rankings.values())))
    retrieving: set[Place] = set()
    for places in rankings.values():
        retrieving |= set(places[: scaled(RETRIEVING, total)])
    others = sorted(set(next(iter(rankings.values()))) - retrieving)
    made: list[Choice] = []
    for count in dict.fromkeys(scaled(number, total) for number in masked):
        if count == 0:
            made.append(Choice("none", 0, None, by_layer([], layers)))
            continue
        made += [Choice(name, count, None, by_layer(places[:count], layers)) for name, places in rankings.items()]
        if draws and count > len(others):
            raise UserError(
                "eval.masked",
                "mask fewer, or set eval.draws=0",
                value=count,
                why=f"the random control draws from {len(others)} heads, without the best of each ranking",
            )
        for draw in range(draws):
            # One shuffle per draw, so that larger choices contain the smaller ones, as in a ranking.
            shuffled = random.Random(draw).sample(others, len(others))
            made.append(Choice("random", count, draw, by_layer(shuffled[:count], layers)))
    return made


def ranked(scores: HeadScores) -> list[Place]:
    """All heads of all layers, best first; equal scores in model order."""
    places = []
    for layer, heads in enumerate(scores):
        places += [(-score, layer, head) for head, score in enumerate(heads)]
    return [(layer, head) for _, layer, head in sorted(places)]


def scaled(count: int, heads: int) -> int:
    """`count` of 1,024 heads as a share of `heads`; at least 1 unless it is 0."""
    return max(1, round(count * heads / OF)) if count else 0


def by_layer(places: Sequence[Place], layers: int) -> Heads:
    """The query heads of each layer, in ascending order."""
    return tuple(tuple(sorted(head for where, head in places if where == layer)) for layer in range(layers))
