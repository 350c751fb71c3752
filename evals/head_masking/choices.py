"""Choose the heads to mask: the best heads of a ranking over all layers, and random heads as a control."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compresskv.calibration import HeadScores, Place, best_first
from compresskv.engine.masking import Heads
from compresskv.errors import UserError

OF = 1024
"""Number of heads in the paper's models: 32 layers of 32 heads."""

RETRIEVING = 100
"""Number of best heads of each ranking, of 1,024, that the random control excludes, as in the released code."""


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
    """Return all choices: `masked` of 1,024 heads of each ranking, and `draws` random choices of the same sizes.

    `scores`: by ranking, all of the same shape. Raises `UserError` if the random control has too few heads.
    """
    rankings = {name: best_first(table) for name, table in scores.items()}
    layers = len(next(iter(scores.values())))
    total = len(next(iter(rankings.values())))
    retrieving = {place for places in rankings.values() for place in places[: scaled(RETRIEVING, total)]}
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
                "mask fewer heads, or set eval.draws=0",
                value=count,
                why=f"the random control draws from {len(others)} heads, without the best of each ranking",
            )
        for draw in range(draws):
            # One shuffle per draw, so that larger choices contain the smaller choices, as in a ranking.
            shuffled = random.Random(draw).sample(others, len(others))
            made.append(Choice("random", count, draw, by_layer(shuffled[:count], layers)))
    return made


def scaled(count: int, heads: int) -> int:
    """Scale `count` of 1,024 heads to a model with `heads` heads; at least 1 unless `count` is 0."""
    return max(1, round(count * heads / OF)) if count else 0


def by_layer(places: Sequence[Place], layers: int) -> Heads:
    """Group query heads by layer, in ascending order."""
    return tuple(tuple(sorted(head for where, head in places if where == layer)) for layer in range(layers))
