"""A setting: one method at one budget."""

from dataclasses import dataclass

from compresskv.budget import Budget, Share
from compresskv.eviction import EvictionMethod, Scorer, needs_answer


@dataclass(frozen=True)
class Setting:
    """One method at one budget (tokens, including the observation window, or a share of the prompt).

    A budget of None is the full cache: it keeps the whole prompt and all new tokens, and `method` becomes None.
    """

    method: EvictionMethod | None
    budget: Budget | None

    def __post_init__(self) -> None:
        if self.budget is None:
            object.__setattr__(self, "method", None)
        else:
            if self.method is None:
                raise ValueError(f"budget={self.budget} without a method: the full cache has no budget")
            if isinstance(self.budget, int):
                self.method.check(self.budget)

    @property
    def window(self) -> int:
        """Number of prompt tokens at the end that are always kept; without a method, 1."""
        return 1 if self.method is None else self.method.window

    def tokens(self, length: int) -> int | None:
        """Return the budget, in tokens, for a prompt of `length` tokens."""
        return self.budget.tokens(length, self.window) if isinstance(self.budget, Share) else self.budget

    def scorers(self, length: int | None, decodes: bool = False) -> list[Scorer]:
        """Return the scorers for a prompt of `length` tokens (None: not known yet); empty if it is kept whole.

        `decodes`: eviction continues while decoding, so scorers are needed even if the prompt is kept whole.
        """
        whole = not decodes and length is not None and self.keeps_all(length)
        return [] if self.method is None or whole else [self.method.scorer]

    @property
    def needs_answer(self) -> bool:
        """Whether the method evicts by the full cache's answer."""
        return self.method is not None and needs_answer(self.method.scorer)

    def keeps_all(self, length: int) -> bool:
        """Return whether a prompt is kept whole in every layer, because it fits the budget, or the window."""
        budget = self.tokens(length)
        return budget is None or length <= max(budget, self.window)


FULL = Setting(None, None)
"""The full cache: nothing is evicted."""
