"""Budgets: tokens that a setting keeps per layer and KV head, as a number or as a share of the compressed tokens."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from compresskv.errors import UserError

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)

LARGEST = 100_000_000


@dataclass(frozen=True)
class Share:
    """Budget as a share of the compressed tokens: `percent` is above 0 and at most 100.

    kvpress's compression ratio is 1 − share.
    """

    percent: Decimal

    def __str__(self) -> str:
        return f"{self.percent.normalize():f}%"

    def tokens(self, length: int, window: int) -> int:
        """Return the budget in tokens for a prompt of `length` tokens, rounded down, and at least `window` + 1."""
        return max(int(self.percent * length / 100), window + 1)


Budget = int | Share
"""Kept tokens per layer and KV head, including the observation window."""


def budget_from(value: Any, field: str = "budget") -> Budget:
    """Parse a budget from a configuration or a result: a number of tokens, or a share such as `25%`.

    Raises `UserError` for any other value.
    """
    if isinstance(value, Share):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= LARGEST:
            return value
    elif isinstance(value, str) and (found := _SHARE.fullmatch(value.strip())):
        percent = Decimal(found[1])
        if 0 < percent <= 100:
            return Share(percent)
        raise UserError(field, "choose a share above 0% and up to 100%", value=value)
    raise UserError(
        field, f"choose a number of tokens from 1 to {LARGEST}, or a share of the prompt such as 25%", value=value
    )


def written(budget: Budget | None) -> int | str | None:
    """Return a budget in the form that files store."""
    return str(budget) if isinstance(budget, Share) else budget


def smallest_first(budget: Budget | None) -> tuple[int, float]:
    """Return a sort key: the full cache (None) first, then token counts, then shares, each in ascending order."""
    if budget is None:
        return 0, 0.0
    return (2, float(budget.percent)) if isinstance(budget, Share) else (1, float(budget))


def largest_first(budget: Budget | None) -> tuple[int, float]:
    """Return a sort key like `smallest_first`, with token counts and shares in descending order."""
    kind, size = smallest_first(budget)
    return kind, -size
